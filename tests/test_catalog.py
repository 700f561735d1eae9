"""Dates and numbers in scene names, sites, merged groups and folds."""

from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satdiff_cli.catalog import (
    assign_folds,
    list_rasters,
    merge_groups,
    name_site,
    order_by_date,
    parse_scene_date,
    parse_unique_number,
)
from satdiff_cli.errors import ConfigError

BEFORE, AFTER = "KVI_20180922_SCN3_UN91", "KV1_20190804_SCN2_UN92"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BEFORE, date(2018, 9, 22)),
        ("scene_2018-09-22_a", date(2018, 9, 22)),
        ("2018.09.22", date(2018, 9, 22)),
        ("2018_09_22T101112", date(2018, 9, 22)),
        ("S2A_20160229", date(2016, 2, 29)),
        ("x20170229_20170301", date(2017, 3, 1)),
        ("a_20170101_b_20180101", date(2017, 1, 1)),
        ("19991231", date(1999, 12, 31)),
        ("20170229", None),
        ("20181301", None),
        ("20180900", None),
        ("120180922", None),
        ("201809221", None),
        ("18990101", None),
        ("site_014", None),
        ("", None),
    ],
)
def test_the_first_calendar_date_in_a_name_is_found(name: str, expected: date | None) -> None:
    assert parse_scene_date(name) == expected


@given(st.dates(date(1900, 1, 1), date(2099, 12, 31)), st.sampled_from(["", "-", "_", "."]))
def test_every_date_written_into_a_name_is_read_back(day: date, separator: str) -> None:
    assert parse_scene_date(f"KVI_{day.strftime(f'%Y{separator}%m{separator}%d')}_SCN3") == day


@pytest.mark.parametrize(
    ("name", "expected"),
    [(BEFORE, 91), ("KV1_20190804_SCN2_un7.tif", 7), ("UN007", 7), ("KVI_2018_SCN3", None), ("UN", None), ("", None)],
)
def test_the_unique_number_of_a_scene_is_read(name: str, expected: int | None) -> None:
    assert parse_unique_number(name) == expected


def test_scenes_are_ordered_by_date_however_they_are_given() -> None:
    assert order_by_date(BEFORE, AFTER) == (BEFORE, AFTER)
    assert order_by_date(AFTER, BEFORE) == (BEFORE, AFTER)


@pytest.mark.parametrize(("first", "second"), [(BEFORE, "undated"), ("undated", AFTER), (BEFORE, BEFORE), ("", "")])
def test_dates_that_do_not_decide_give_no_order(first: str, second: str) -> None:
    assert order_by_date(first, second) is None


@pytest.mark.parametrize(
    ("pattern", "site"),
    [
        (None, "town_3_a"),
        (r"^[a-z]+", "town"),
        (r"_(\d)_", "3"),
        (r"(\d)_([a-z])", "3"),
        ("(city)|town_.", "town_3"),
        ("nowhere", "town_3_a"),
        ("x*", "town_3_a"),
        ("", "town_3_a"),
    ],
)
def test_a_site_is_the_patterns_first_group_or_match_or_the_pair(pattern: str | None, site: str) -> None:
    assert name_site("town_3_a", pattern) == site


@pytest.mark.parametrize("pattern", ["(", "[a", "*"])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        name_site("town_3_a", pattern)


def test_keys_that_share_a_member_are_merged_also_through_others() -> None:
    groups = {"d": [1, 2], "a": [9], "c": [2, 3], "b": [3, 4], "e": []}
    assert merge_groups(groups) == {"d": "b", "c": "b", "b": "b", "a": "a", "e": "e"}
    assert merge_groups({}) == {}


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.integers(0, 6), max_size=3)))
def test_merged_groups_share_members_and_do_not_depend_on_the_order(groups: dict[str, list[int]]) -> None:
    merged = merge_groups(groups)
    assert merged == merge_groups(dict(reversed(groups.items())))
    for name in set(merged.values()):
        keys = [key for key in groups if merged[key] == name]
        assert name == min(keys)
        inside = {member for key in keys for member in groups[key]}
        outside = {member for key in groups if key not in keys for member in groups[key]}
        assert not inside & outside
        reached = {name}
        while (
            more := {key for key in keys if any(set(groups[key]) & set(groups[other]) for other in reached)} - reached
        ):
            reached |= more
        assert reached == set(keys)


@given(st.lists(st.integers(0, 30).map(lambda number: f"site{number}")), st.integers(1, 6), st.integers(0, 2**40))
def test_every_site_gets_one_fold_and_folds_are_even(sites: list[str], folds: int, seed: int) -> None:
    assigned = assign_folds(sites, folds=folds, seed=seed)
    assert set(assigned) == set(sites)
    assert set(assigned.values()) <= {str(number) for number in range(folds)}
    sizes = [Counter(assigned.values())[str(number)] for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    assert assigned == assign_folds(sites[::-1] * 2, folds=folds, seed=seed)


def test_another_seed_gives_other_folds() -> None:
    sites = [f"site{number:02}" for number in range(40)]
    assert assign_folds(sites, folds=5, seed=0) != assign_folds(sites, folds=5, seed=1)


def test_fewer_sites_than_folds_leave_folds_empty() -> None:
    assert sorted(assign_folds(["a", "b"], folds=5, seed=0).values()) == ["0", "1"]
    assert assign_folds([], folds=5, seed=0) == {}


def test_rasters_are_listed_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.TIF", "a/z.jp2", "a/b.png", ".hidden.tif", ".cache/x.tif", "notes.txt", "a/.b/c.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.tif").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_rasters(tmp_path)] == ["a/b.png", "a/z.jp2", "b.TIF"]
