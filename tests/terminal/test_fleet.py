from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.cells import cell_len

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition
from vllm_monitor.terminal import LiveView, StoreLine

Picture = Callable[..., Snapshot]
Lines = Callable[..., list[str]]
TROUBLE = {
    "http://a:1": (Condition.OK, 0.0),
    "http://b:1": (Condition.STARVED, 5.0),
    "http://c:1": (Condition.ENGINE_DEAD, 9.0),
    "http://d:1": (Condition.STALLED, 8.0),
    "http://e:1": (Condition.STALLED, 2.0),
    "http://f:1": (Condition.IDLE, 0.0),
}


@pytest.fixture
def fleet(picture: Picture, start_time: float) -> LiveView:
    view = LiveView()
    snapshots = [
        picture(
            10,
            target=target,
            condition=condition,
            condition_since=start_time + since,
            reason=f"this is {target}",
        )
        for target, (condition, since) in TROUBLE.items()
    ]
    view.update(snapshots, [], StoreLine())
    return view


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 40), (200, 60)])
def test_the_most_urgent_comes_first_and_in_detail(fleet: LiveView, lines_of: Lines, width: int, height: int) -> None:
    lines = lines_of(fleet, width, height)
    rows = [line for line in lines[:9] if "http://" in line and "most urgent" not in line]
    assert [row.split("http://")[1][0] for row in rows] == ["c", "e", "d", "b", "a", "f"]
    assert rows[0].startswith(" !! ENGINE DEAD")
    assert "412" in rows[0]
    assert lines[0].startswith(" 6 targets: 1 engine dead · 2 stalled · 1 starved")
    assert any("most urgent: http://c:1" in line for line in lines)
    assert any(line.startswith(" this is http://c:1") for line in lines)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_targets_beyond_the_screen_are_counted(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    view.update([picture(target=f"http://t{number:02d}:1") for number in range(40)], [], StoreLine())
    text = "\n".join(lines_of(view, 80, 24))
    assert " more, all well" in text
    sick = [picture(1, target=f"http://t{number:02d}:1", condition=Condition.STALLED) for number in range(40)]
    view.update(sick, [], StoreLine())
    assert " of them not well" in "\n".join(lines_of(view, 80, 24))


def test_a_removed_target_leaves_the_screen(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    view.update([picture(0, target="http://a:1"), picture(0, target="http://gone:1")], [], StoreLine())
    view.update([picture(30, target="http://a:1")], [], StoreLine())
    assert "gone" in "\n".join(lines_of(view, 80, 24))
    view.update([picture(61, target="http://a:1")], [], StoreLine())
    assert "gone" not in "\n".join(lines_of(view, 80, 24))


def test_sums_leave_out_what_is_not_known(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    values = [{"generation_tokens_per_second": 100.0}, {}, {"generation_tokens_per_second": float("nan")}]
    pictures = [picture(target=f"http://{number}", values=known) for number, known in enumerate(values)]
    view.update(pictures, [], StoreLine())
    assert "100 tokens/s · - running · - waiting" in lines_of(view, 120, 40)[0]


def test_the_same_picture_again_is_no_new_tick(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    old = picture(0, target="http://old:1", condition=Condition.STALLED)
    for tick in range(90):
        view.update([old, picture(tick, target="http://new:1")], [], StoreLine())
    lines = lines_of(view, 120, 40)
    assert any("http://old:1" in line for line in lines)
    assert any("NO NEW PICTURE OF THIS TARGET FOR 1 m 29 s" in line for line in lines)
    row = next(line for line in lines if line.startswith(" tokens/s") and "now" not in line)
    assert row.count("█") == 1
