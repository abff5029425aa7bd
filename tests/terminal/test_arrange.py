from __future__ import annotations

from rich.text import Text

from vllm_monitor.terminal.arrange import LUXURY, Section, arrange, beside, fixed


def _numbered(name: str, wanted: int, minimum: int, priority: int) -> Section:
    return Section(lambda height: [Text(f"{name}{number}") for number in range(height)], wanted, minimum, priority)


def _names(sections: list[Section], height: int) -> str:
    return " ".join(line.plain for line in arrange(sections, height))


def test_minimums_come_before_wishes_and_wishes_before_luxuries() -> None:
    sections = [
        _numbered("a", 3, 1, priority=1),
        _numbered("x", 1, 1, priority=LUXURY),
        _numbered("b", 3, 2, priority=0),
    ]
    assert _names(sections, 1) == "a0"
    assert _names(sections, 2) == "b0 b1"
    assert _names(sections, 3) == "a0 b0 b1"
    assert _names(sections, 4) == "a0 b0 b1 b2"
    assert _names(sections, 6) == "a0 a1 a2 b0 b1 b2"
    assert _names(sections, 9) == "a0 a1 a2 x0 b0 b1 b2"


def test_columns_stand_beside_each_other() -> None:
    both = beside([fixed([Text("left")])], 6, [fixed([Text("r1"), Text("r2")])])
    assert [line.plain for line in arrange([both], 5)] == ["left    r1", "        r2"]
