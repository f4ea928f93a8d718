"""Every way to break a rule of section 5 of SPEC.md: both readers give its status."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Callable

import pytest

from bitm_formats import FormatError, Status, read, to_bytes
from malformed import Case, cases, full_model, mutant

SPEC = Path(__file__).parents[1] / "formats" / "SPEC.md"
NativeStatus = Callable[[bytes, bool], str]


def python_status(content: bytes, verify: bool) -> str:
    try:
        read(content, verify)
    except FormatError as err:
        return err.status
    return "OK"


@pytest.fixture(scope="module")
def all_cases() -> list[Case]:
    return list(cases())


def _wrong(all_cases: list[Case], status: Callable[[bytes, bool], str]) -> list[str]:
    """The cases where a reader's status is not the expected one, when opening or verifying."""
    wrong = []
    for case in all_cases:
        on_opening = "OK" if case.needs_verify else case.status
        found = (status(case.content, False), status(case.content, True))
        if found != (on_opening, case.status):
            wrong.append(f"{case.name}: expected {on_opening}, {case.status}, found {found}")
    return wrong


def test_python_reader(all_cases: list[Case]) -> None:
    assert _wrong(all_cases, python_status) == []


def test_native_reader(all_cases: list[Case], native_status: NativeStatus) -> None:
    assert _wrong(all_cases, native_status) == []


def test_every_rule_has_a_case(all_cases: list[Case]) -> None:
    section = SPEC.read_text("utf-8").split("## 5. ")[1].split("## 6. ")[0]
    named = set(re.findall(r"`(FILE_[A-Z_]+)`", section))
    assert named == {status.name for status in Status}
    assert named | {"OK"} == {case.status for case in all_cases}


def test_names_of_cases_are_unique(all_cases: list[Case]) -> None:
    assert [name for name, n in Counter(case.name for case in all_cases).items() if n > 1] == []


def test_messages_say_what_and_where(all_cases: list[Case]) -> None:
    """A message about an entry names it; none is empty or runs over several lines."""
    for case in all_cases:
        if case.status == "OK":
            continue
        with pytest.raises(FormatError) as caught:
            read(case.content)
        message = str(caught.value)
        assert message, case.name
        assert message.isprintable(), case.name
        if case.status.startswith("FILE_TENSOR") and "the data end at" not in message:
            assert re.search(r"tensor (table: )?[a-z0-9_.]+", message), (case.name, message)


def test_path_is_part_of_the_message(tmp_path: Path) -> None:
    path = tmp_path / "broken.bitm"
    path.write_bytes(b"PK\3\4 not a model")
    with pytest.raises(FormatError, match=re.escape(str(path))) as caught:
        read(path)
    assert (caught.value.status, caught.value.number) == ("FILE_MAGIC", 20)


@pytest.mark.parametrize("seed", range(8))
def test_mutants_get_one_answer(seed: int, native_status: NativeStatus) -> None:
    """Random changes with checksums made right: two readers, one status."""
    valid = to_bytes(full_model())
    rng = random.Random(seed)
    different = []
    for number in range(250):
        content = mutant(valid, rng)
        found = (python_status(content, True), native_status(content, True))
        if found[0] != found[1]:
            different.append((number, found))
    assert different == []
