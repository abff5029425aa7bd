"""What a store promises of records."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from vllm_monitor.errors import RecordNotFoundError
from vllm_monitor.records import AlertState, AttemptStatus, LifecycleState, MitigationOutcome, PredictionOutcome
from vllm_monitor.testing.contract_base import HOST, StoreContract
from vllm_monitor.testing.example_records import HOSTILE, RECORDS, checkpoint
from vllm_monitor.testing.expectations import expect, expect_equal, expect_error

__all__ = ["RecordContract"]


class RecordContract(StoreContract):
    """Records: equal by type and bits, in order, filtered, one for each id."""

    def test_every_record_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """By type and bits, with hostile metadata, at once and after reopening."""
        wanted = {example.name: example.make("id-ü", 5.25, target=HOST, metadata=HOSTILE) for example in RECORDS}
        with self.open(tmp_path) as store:
            for example in RECORDS:
                record_id = example.save(store, wanted[example.name])
                expect_equal(record_id, "id-ü", f"the id of {example.name}")
                expect_equal(example.load(store), [wanted[example.name]], f"{example.name} at once")
        with self.open(tmp_path) as store:
            for example in RECORDS:
                expect_equal(example.load(store), [wanted[example.name]], f"{example.name} after reopening")
            expect(store.health().ok, f"the store is not well: {store.health().message}")

    def test_an_id_that_is_left_out_is_filled_in(self, tmp_path: Path) -> None:
        """It is returned, and takes no part in the comparison."""
        with self.open(tmp_path) as store:
            record = checkpoint(None, 1.0)
            record_id = store.save_checkpoint(record)
            (found,) = store.get_checkpoints()
            expect_equal(found, dataclasses.replace(record, checkpoint_id=record_id), "a checkpoint without an id")

    def test_records_are_filtered_and_ordered(self, tmp_path: Path) -> None:
        """Newest first, equal times in reverse order of arrival; filters, times, target, limit."""
        for round_number in range(2):
            with self.open(tmp_path) as store:
                for example in RECORDS:
                    if round_number == 0:
                        for number, time in enumerate([3.0, 1.0, 2.0, 2.0]):
                            example.save(store, example.make(f"{example.name}-{number}", time, target=f"t{number}"))
                    what = example.name
                    found = [getattr(record, example.id_field)[-1] for record in example.load(store)]
                    expect_equal(found, ["0", "3", "2", "1"], f"the order of {what}")
                    expect_equal(len(example.load(store, limit=2)), 2, f"a limit on {what}")
                    expect_equal(len(example.load(store, target="t2")), 1, f"{what} of a target")
                    expect_equal(len(example.load(store, start_time=2.0, end_time=2.5)), 2, f"{what} in a range")
                    expect_equal(len(example.load(store, **example.passes)), 4, f"{what} that pass")
                    expect_equal(example.load(store, **example.fails), [], f"{what} that do not pass")

    def test_saving_an_id_again_replaces_the_record(self, tmp_path: Path) -> None:
        """First the intent, later the outcome; never two records."""
        (example,) = (example for example in RECORDS if example.name == "mitigation_attempts")
        settled = example.make("one", 1.0)
        intended = dataclasses.replace(settled, status=AttemptStatus.INTENDED, outcome=None, final_state=None)
        with self.open(tmp_path) as store:
            for attempt in (intended, settled, settled):
                store.save_mitigation_attempt(attempt)
                expect_equal(store.get_mitigation_history(), [attempt], "an attempt saved again")
            expect_equal(store.get_mitigation_history(outcome=MitigationOutcome.SUCCESS), [], "another outcome")
        with self.open(tmp_path) as store:
            expect_equal(store.get_mitigation_history(), [settled], "the attempt after reopening")

    def test_saving_an_earlier_stage_again_undoes_nothing(self, tmp_path: Path) -> None:
        """A late or repeated intent, a prediction that was open, an alert that still fired."""
        examples = {example.name: example for example in RECORDS}
        settled = examples["mitigation_attempts"].make("one", 1.0)
        resolved = dataclasses.replace(examples["alerts"].make("one", 1.0), state=AlertState.RESOLVED)
        open_one = dataclasses.replace(examples["predictions"].make("one", 1.0), outcome=PredictionOutcome.OPEN)
        with self.open(tmp_path) as store:
            store.save_mitigation_attempt(settled)
            store.save_mitigation_attempt(dataclasses.replace(settled, status=AttemptStatus.INTENDED, outcome=None))
            store.save_alert(resolved)
            store.save_alert(dataclasses.replace(resolved, state=AlertState.FIRING))
            store.save_prediction(open_one, actual_outcome=PredictionOutcome.HAPPENED)
            store.save_prediction(open_one)
        with self.open(tmp_path) as store:
            expect_equal(store.get_mitigation_history(), [settled], "an attempt that was settled")
            expect_equal(store.get_alerts(), [resolved], "an alert that was resolved")
            expect_equal(store.get_predictions()[0].outcome, PredictionOutcome.HAPPENED, "a known outcome")

    def test_the_outcome_of_a_prediction_is_added(self, tmp_path: Path) -> None:
        """By its value or name; for an id that is not there it is an error."""
        (example,) = (example for example in RECORDS if example.name == "predictions")
        with self.open(tmp_path) as store:
            for name in ("one", "two"):
                example.save(store, example.make(name, 1.0))
            store.update_prediction_outcome("one", PredictionOutcome.HAPPENED)
            store.update_prediction_outcome("two", "CENSORED")
            with expect_error(RecordNotFoundError, "the outcome of an unknown prediction"):
                store.update_prediction_outcome("three", PredictionOutcome.HAPPENED)
        with self.open(tmp_path) as store:
            found = {prediction.prediction_id: prediction.outcome for prediction in store.get_predictions()}
            wanted = {"one": PredictionOutcome.HAPPENED, "two": PredictionOutcome.CENSORED}
            expect_equal(sorted(found.items()), sorted(wanted.items()), "outcomes")

    def test_happy_paths_keep_their_counts(self, tmp_path: Path) -> None:
        """Saving one again updates it and keeps the counts."""
        steps = [checkpoint("a", 1.0), dataclasses.replace(checkpoint("b", 2.0), state=LifecycleState.READY)]
        with self.open(tmp_path) as store:
            for name in ("first", "second"):
                store.save_happy_path("path", name, steps, {"ttft": {"mean": 0.5}}, ["queue"], metadata=HOSTILE)
                store.update_happy_path_stats("path", success=True)
            store.update_happy_path_stats("path", success=False)
            with expect_error(RecordNotFoundError, "the counts of an unknown happy path"):
                store.update_happy_path_stats("other", success=True)
        with self.open(tmp_path) as store:
            (path,) = store.get_happy_paths(LifecycleState.DEGRADED, "ready")
            expect_equal((path.name, path.success_count, path.failure_count), ("second", 2, 1), "a happy path")
            expect_equal((path.checkpoints, path.metadata), (steps, HOSTILE), "what is in it")
            expect_equal(store.get_happy_paths(end_state="error"), [], "paths to another state")

    def test_learning_data_come_back_as_they_were(self, tmp_path: Path) -> None:
        """Any value as context and action."""
        with self.open(tmp_path) as store:
            for number in range(3):
                store.save_learning_data("bandit", HOSTILE, ("restart", number), -0.0, {"n": number}, timestamp=number)
            store.save_learning_data("table", {}, None, None)
        with self.open(tmp_path) as store:
            found: list[dict[str, Any]] = store.get_learning_data("bandit", limit=2)
            expect_equal([one["action_taken"] for one in found], [("restart", 2), ("restart", 1)], "actions")
            expect_equal((found[0]["state_context"], found[0]["reward"]), (HOSTILE, -0.0), "an experience")
            expect_equal(len(store.get_learning_data(limit=None)), 4, "all learning data")

    def test_secrets_are_taken_out(self, tmp_path: Path) -> None:
        """Tokens, keys and passwords of arguments and environment reach no file."""
        secret = "sk-verysecretindeed0123456789"  # noqa: S105  # made up
        record = dataclasses.replace(
            checkpoint("one", 1.0), arguments={"api_key": secret}, environment={"HF_TOKEN": secret, "HOME": "/h"}
        )
        with self.open(tmp_path) as store:
            store.save_checkpoint(record)
            (found,) = store.get_checkpoints()
        expect_equal(found.environment["HOME"], "/h", "what is no secret")
        for path in tmp_path.rglob("*"):
            expect(not path.is_file() or secret.encode() not in path.read_bytes(), f"a secret is in {path}")

    def test_async_forms_save_as_well(self, tmp_path: Path) -> None:
        """Without blocking the loop."""

        async def save() -> str:
            return await store.save_checkpoint_async(checkpoint("one", 1.0))

        with self.open(tmp_path) as store:
            expect_equal(asyncio.run(save()), "one", "the id")
            expect(store.is_durable("one"), "a checkpoint is not durable when saving has returned")
