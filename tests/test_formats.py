"""The three dataset layouts: which rows, files and lists become pairs, and what is said about the rest."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import rasterio
import xlwt
from rasterio.transform import from_origin

from satdiff_cli import catalog
from satdiff_cli.catalog import Catalog, CatalogOptions, ScenePair, join_files, split_files
from satdiff_cli.errors import CatalogError
from satdiff_cli.formats import csv, levir, rucode
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.raster import gdal_name
from satdiff_cli.tables import Row, read_sheets

A1, B1 = "KVI_20180922_SCN3_UN91", "KV1_20190804_SCN2_UN92"
A2, B2 = "KVI_20170501_SCN1_UN93", "KV3_20200611_SCN4_UN94"
A3, B3 = "KV1_20160101_SCN1_UN95", "KV1_20160202_SCN9_UN96"
PAIR1, PAIR2, PAIR3 = f"{A1}__{B1}", f"{A2}__{B2}", f"{A3}__{B3}"
NO_OPTIONS = CatalogOptions()

Cell = str | int | float | datetime.datetime | None
Table = Sequence[Sequence[Cell]]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def add_scenes(root: Path, *names: str) -> None:
    for name in names:
        touch(root / "Images" / f"{name}.tif")


def write_xls(path: Path, *sheets: Table) -> Path:
    book = xlwt.Workbook(encoding="utf-8")
    for number, table in enumerate(sheets):
        sheet = book.add_sheet(f"Лист{number}")
        for row, cells in enumerate(table):
            for column, value in enumerate(cells):
                sheet.write(row, column, value)
    book.save(str(path))
    return path


def write_xlsx(path: Path, *sheets: Table) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, table in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet{number}")
        for cells in table:
            sheet.append(list(cells))
    book.save(path)
    return path


def write_geotiff(path: Path, left: float, top: float, *, size: tuple[int, int] = (20, 30), crs: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "crs": crs}
    with rasterio.open(path, "w", transform=from_origin(left, top, 1, 1), **profile) as target:
        target.write(np.zeros((1, height, width), np.uint8))


def read(root: Path, options: CatalogOptions = NO_OPTIONS) -> Catalog:
    return rucode.read_catalog(root, options)


def ids(catalog: Catalog) -> list[str]:
    return [pair.pair_id for pair in catalog.pairs]


def only_pair(catalog: Catalog) -> ScenePair:
    assert len(catalog.pairs) == 1, catalog
    return catalog.pairs[0]


def complaints(catalog: Catalog) -> list[tuple[str, str]]:
    return [(problem.source, problem.item) for problem in catalog.problems]


def test_every_format_offers_recognise_and_read_catalog() -> None:
    assert {"csv", "levir", "rucode"} <= set(list_plugins("formats"))
    for name in list_plugins("formats"):
        plugin = load_plugin("formats", name)
        assert callable(plugin.recognise)
        assert callable(plugin.read_catalog)


@pytest.mark.parametrize("name", ["csv", "levir", "rucode"])
def test_no_format_recognises_an_empty_folder_or_a_missing_one(tmp_path: Path, name: str) -> None:
    plugin = load_plugin("formats", name)
    assert not plugin.recognise(tmp_path, NO_OPTIONS)
    assert not plugin.recognise(tmp_path / "nowhere", NO_OPTIONS)
    with pytest.raises(CatalogError):
        plugin.read_catalog(tmp_path, NO_OPTIONS)


# --- rucode: the table -------------------------------------------------------------------------------------------


def test_rucode_reads_a_plain_xls_and_dates_decide_which_scene_is_before(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2)
    write_xls(tmp_path / "Rucode.xls", [["first", "second"], [A1, B1], [B2, A2]])
    catalog = read(tmp_path)
    assert rucode.recognise(tmp_path, NO_OPTIONS)
    assert catalog.format == "rucode"
    assert ids(catalog) == [PAIR2, PAIR1]
    assert not catalog.problems
    second = catalog.pairs[0]
    assert (second.before[0].stem, second.after[0].stem) == (A2, B2)
    assert (second.before_date, second.after_date) == ("2017-05-01", "2020-06-11")
    assert second.source == "Rucode.xls row 3"
    assert second.label is None
    assert second.composite is None
    assert second.site_id == PAIR2
    assert second.fold == ""


def test_rucode_survives_titles_blanks_paths_case_and_cyrillic_headers(tmp_path: Path) -> None:
    touch(tmp_path / "Images" / "train" / "deep" / f"{A1}.TIF")
    add_scenes(tmp_path, B1, A2, B2)
    rows: Table = [
        ["Таблица соответствия снимков"],
        [],
        ["№", "Город", "Снимок 1", "Снимок 2", "Примечание"],
        [1, 2, 3, 4, 5],
        [1, "Орёл", f"Images\\train\\{A1}.tif", f" {B1.lower()} ", "ok"],
        ["", "", "", "", "merged note"],
        [2, "Омск", f"/data/Images/{A2}.tiff", f"{B2[:12]} {B2[12:]}.TIF", None],
    ]
    write_xlsx(tmp_path / "RUCODE.XLSX", rows)
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR2, PAIR1]
    assert not catalog.problems
    assert [pair.source for pair in catalog.pairs] == ["RUCODE.XLSX row 7", "RUCODE.XLSX row 5"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1251", "utf-16"])
def test_rucode_reads_csv_of_any_delimiter_and_encoding(tmp_path: Path, delimiter: str, encoding: str) -> None:
    add_scenes(tmp_path, A1, B1)
    lines = ["Коды снимков", delimiter.join(["Код", "Снимок до", "после"]), "", delimiter.join(["7", A1, f"{B1}.tif"])]
    (tmp_path / "rucode.csv").write_bytes("\r\n".join(lines).encode(encoding))
    assert only_pair(read(tmp_path)).source == "rucode.csv row 4"


def test_rucode_reads_unique_numbers_written_as_floats(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2)
    write_xls(tmp_path / "Rucode.xls", [["n", "a", "b"], [1.0, 92.0, 91.0], [2.0, 93.0, 94.0], [3.0, 93.0, 97.0]])
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR2, PAIR1]
    assert complaints(catalog) == [("Rucode.xls row 4", "97")]


def test_rucode_is_not_misled_by_a_running_number_that_is_a_unique_number_too(tmp_path: Path) -> None:
    names = [f"KVI_2018090{number}_SCN1_UN{number}" for number in range(1, 7)]
    add_scenes(tmp_path, *names)
    write_xlsx(tmp_path / "Rucode.xlsx", [["no", "a", "b"], [1, 1, 2], [2, 3, 4], [3, 5, 6]])
    catalog = read(tmp_path)
    assert [(pair.before[0].stem, pair.after[0].stem) for pair in catalog.pairs] == [
        (names[first], names[first + 1]) for first in (0, 2, 4)
    ]
    assert not catalog.problems


def test_rucode_prefers_columns_with_names_over_columns_with_numbers(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2)
    write_xls(tmp_path / "Rucode.xls", [["x", "y", "a", "b"], [91, 93, A1, B1], [92, 94, A2, B2]])
    assert ids(read(tmp_path)) == [PAIR2, PAIR1]


def test_rucode_tells_the_second_scene_from_the_path_of_the_first(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    write_xls(tmp_path / "Rucode.xls", [["name", "path", "name", "mask"], [A1, f"Images/{A1}.tif", B1, f"{PAIR1}.tif"]])
    assert ids(read(tmp_path)) == [PAIR1]


def test_rucode_reads_one_column_that_names_both_scenes(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2)
    write_xls(tmp_path / "Rucode.xls", [["place", "pair"], ["x", f"{PAIR1}.tif"], ["y", f"{B2}__{A2}"]])
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR2, PAIR1]
    assert not catalog.problems


def test_rucode_uses_the_first_sheet_with_usable_columns(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    cover: Table = [["About", "2021"], ["made by", "nobody"]]
    write_xls(tmp_path / "Rucode.xls", cover, [["a", "b"], [A1, B1]], [["a", "b"], [B1, A1], [A1, B1]])
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR1]
    assert not catalog.problems


def test_rucode_keeps_the_column_order_where_dates_are_equal_or_absent(tmp_path: Path) -> None:
    add_scenes(tmp_path, "z_first", "a_second", "p_20180101_z", "p_20180101_a")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], ["z_first", "a_second"], ["p_20180101_z", "p_20180101_a"]])
    catalog = read(tmp_path)
    assert ids(catalog) == ["p_20180101_z__p_20180101_a", "z_first__a_second"]
    assert catalog.pairs[1].before_date == ""


@pytest.mark.parametrize(("before", "after"), [(" LATER ", "earlier"), ("3", "2"), ("later", "2"), ("Later", None)])
def test_columns_that_a_person_names_override_the_dates(tmp_path: Path, before: str, after: str | None) -> None:
    add_scenes(tmp_path, A1, B1)
    write_xls(tmp_path / "Rucode.xls", [["title"], ["no", "Earlier", "Later"], [1, A1, B1]])
    pair = only_pair(read(tmp_path, CatalogOptions(before_column=before, after_column=after)))
    assert (pair.before[0].stem, pair.after[0].stem) == (B1, A1)
    assert pair.before_date == "2019-08-04"


def test_unknown_column_and_table_without_scenes_are_errors_that_list_the_columns(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    write_xls(tmp_path / "Rucode.xls", [["Region", "Code"], ["North", 5], ["South", 6]])
    for options in (NO_OPTIONS, CatalogOptions(before_column="nothing")):
        with pytest.raises(CatalogError) as caught:
            read(tmp_path, options)
        assert "Rucode.xls" in caught.value.message
        assert "'Region', 'Code'" in caught.value.message
        assert "--before-column NAME --after-column NAME" in caught.value.hint


def test_a_given_table_is_read_instead_and_a_missing_or_damaged_one_is_an_error(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2)
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A2, B2]])
    (tmp_path / "mine.csv").write_text(f"a,b\n{A1},{B1}\n{A2},{B2}\n")
    assert len(read(tmp_path, CatalogOptions(table=tmp_path / "mine.csv")).pairs) == 2
    assert len(read(tmp_path, CatalogOptions(table=Path("mine.csv"))).pairs) == 2
    with pytest.raises(CatalogError, match=r"absent\.csv"):
        read(tmp_path, CatalogOptions(table=tmp_path / "absent.csv"))
    (tmp_path / "Rucode.xls").write_text("not a workbook")
    with pytest.raises(CatalogError, match=r"Rucode\.xls cannot be read"):
        read(tmp_path)


def test_rucode_reports_each_row_that_cannot_become_a_pair(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2, A3)
    missing = "KVI_20170501_SCN1_UN98"
    rows: Table = [["a", "b"], [A1, B1], [missing, B2], [A1, A2], [A2, A2], [A2, ""], [B1, A1], ["total: 6", 3]]
    write_xls(tmp_path / "Rucode.xls", rows)
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR1]
    reasons = {problem.source: (problem.item, problem.reason) for problem in catalog.problems}
    assert reasons["Rucode.xls row 3"][0] == missing
    assert f"did you mean {A2}" in reasons["Rucode.xls row 3"][1]
    assert reasons["Rucode.xls row 4"] == (A1, "the scene is already in Rucode.xls row 2")
    assert reasons["Rucode.xls row 5"] == (A2, "the row names the same scene twice")
    assert reasons["Rucode.xls row 6"] == (A2, "the row names only one scene")
    assert reasons["Rucode.xls row 7"][1] == "the scene is already in Rucode.xls row 2"
    assert reasons["Rucode.xls row 8"][0] == "total: 6"
    assert reasons["Rucode.xls"] == (A3, "in no row of the table")
    assert len(catalog.problems) == 7


def test_a_row_with_a_missing_scene_is_a_row_even_as_the_only_one(tmp_path: Path) -> None:
    add_scenes(tmp_path, "unrelated")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1]])
    assert complaints(read(tmp_path)) == [("Rucode.xls row 2", A1), ("Rucode.xls", "unrelated")]


def test_rucode_reports_files_with_the_same_stem_and_uses_the_geotiff(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    touch(tmp_path / "Images" / f"{A1}.jpg")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1]])
    catalog = read(tmp_path)
    assert only_pair(catalog).before[0].suffix == ".tif"
    assert complaints(catalog) == [("Images", A1)]


# --- rucode: composites, labels, submission ----------------------------------------------------------------------


def test_rucode_finds_composites_and_labels_and_takes_over_the_spelling_of_the_id(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2, A3, B3)
    composite = touch(tmp_path / "Images_composit" / "train" / f"{PAIR1}.tif")
    label = touch(tmp_path / "mask" / "train" / f"{PAIR1}.tif")
    reversed_label = touch(tmp_path / "mask" / f"{B2}__{A2}.tif")
    (tmp_path / "sample_submission.csv").write_text(f"Id,mask\n{B3}__{A3},1 2\n")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1], [A2, B2], [A3, B3]])
    catalog = read(tmp_path)
    assert not catalog.problems
    pairs = {pair.pair_id: pair for pair in catalog.pairs}
    assert set(pairs) == {PAIR1, f"{B2}__{A2}", f"{B3}__{A3}"}
    assert (pairs[PAIR1].composite, pairs[PAIR1].label) == (composite, label)
    assert pairs[f"{B2}__{A2}"].label == reversed_label
    assert pairs[f"{B2}__{A2}"].before[0].stem == A2
    assert catalog.test_ids == {f"{B3}__{A3}"}


def test_rucode_reports_labels_composites_and_test_ids_without_a_pair(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    touch(tmp_path / "mask" / f"{PAIR2}.tif")
    touch(tmp_path / "Images_composit" / "odd name.tif")
    (tmp_path / "sample_submission.csv").write_text(f"Id,mask\n{PAIR1},\n{PAIR3},\n")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1]])
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR1]
    assert complaints(catalog) == [("Images_composit", "odd name"), ("mask", PAIR2), ("sample_submission.csv", PAIR3)]
    assert catalog.test_ids == {PAIR1, PAIR3}


def test_composites_alone_are_pairs_whose_scenes_are_the_composite(tmp_path: Path) -> None:
    composite = touch(tmp_path / "Images_composit" / f"{PAIR1}.tif")
    touch(tmp_path / "mask" / f"{PAIR1}.tif")
    assert rucode.recognise(tmp_path, NO_OPTIONS)
    catalog = read(tmp_path)
    pair = only_pair(catalog)
    assert not catalog.problems
    assert pair.composite == composite
    assert pair.before == pair.after == (composite,)
    assert (pair.before_date, pair.after_date) == ("2018-09-22", "2019-08-04")
    assert pair.label is not None


def test_a_row_without_scene_files_is_a_pair_where_a_composite_holds_it(tmp_path: Path) -> None:
    touch(tmp_path / "Images_composit" / f"{PAIR1}.tif")
    touch(tmp_path / "Images_composit" / f"{PAIR2}.tif")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1], [A2, A3]])
    catalog = read(tmp_path)
    assert [pair.source for pair in catalog.pairs] == [f"Images_composit: {PAIR2}", "Rucode.xls row 2"]
    assert complaints(catalog) == [("Rucode.xls row 3", A3)]


def test_a_composite_not_in_the_table_is_a_pair_and_shares_the_site_of_its_scenes(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, B2)
    touch(tmp_path / "Images_composit" / f"{B1}__{B2}.tif")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1]])
    catalog = read(tmp_path)
    assert ids(catalog) == [f"{B1}__{B2}", PAIR1]
    assert {pair.site_id for pair in catalog.pairs} == {f"{B1}__{B2}"}
    assert not catalog.problems


def test_the_bands_of_a_composite_decide_the_order_unless_a_person_does(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    composite = touch(tmp_path / "Images_composit" / f"{B1}__{A1}.tif")
    write_xls(tmp_path / "Rucode.xls", [["a", "b"], [A1, B1]])
    pair = only_pair(read(tmp_path))
    assert (pair.pair_id, pair.before[0].stem, pair.composite) == (f"{B1}__{A1}", B1, composite)
    pair = only_pair(read(tmp_path, CatalogOptions(before_column="a", after_column="b")))
    assert (pair.before[0].stem, pair.after[0].stem, pair.composite) == (A1, B1, None)


def test_a_site_pattern_names_the_site(tmp_path: Path) -> None:
    add_scenes(tmp_path, "oslo_20180101", "oslo_20190101", "bonn_20180101", "bonn_20190101")
    rows: Table = [["a", "b"], ["oslo_20180101", "oslo_20190101"], ["bonn_20180101", "bonn_20190101"]]
    write_xls(tmp_path / "Rucode.xls", rows)
    catalog = read(tmp_path, CatalogOptions(site_pattern=r"^([a-z]+)_"))
    assert [pair.site_id for pair in catalog.pairs] == ["bonn", "oslo"]


def test_an_empty_images_folder_and_a_submission_without_ids_are_errors(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    with pytest.raises(CatalogError, match="holds no scenes"):
        read(tmp_path)
    add_scenes(tmp_path, A1, B1)
    (tmp_path / "sample_submission.csv").write_text("name,mask\nx,\n")
    with pytest.raises(CatalogError, match="no column Id"):
        read(tmp_path)


# --- rucode: without a table -------------------------------------------------------------------------------------


def test_without_a_table_consecutive_unique_numbers_are_pairs_odd_first(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1, A2, B2, "plain_UN97", "other_UN98")
    catalog = read(tmp_path)
    assert ids(catalog) == [PAIR2, PAIR1, "plain_UN97__other_UN98"]
    assert catalog.pairs[1].source == "unique numbers 91 and 92"
    assert not catalog.problems


def test_without_a_table_a_label_names_its_scenes_even_against_the_numbers(tmp_path: Path) -> None:
    add_scenes(tmp_path, "oslo_20180101", "oslo_20190101", "oslo_20200101")
    touch(tmp_path / "mask" / "oslo_20180101__oslo_20190101.png")
    touch(tmp_path / "mask" / "oslo_20190101__oslo_20200101.png")
    catalog = read(tmp_path)
    assert ids(catalog) == ["oslo_20180101__oslo_20190101", "oslo_20190101__oslo_20200101"]
    assert len({pair.site_id for pair in catalog.pairs}) == 1
    assert not catalog.problems


def test_without_a_table_and_numbers_footprints_and_dates_make_pairs(tmp_path: Path) -> None:
    scenes = tmp_path / "Images"
    write_geotiff(scenes / "late_20200101.tif", 0, 100, crs="EPSG:32633")
    write_geotiff(scenes / "early_20180101.tif", 5, 97, crs="EPSG:32633")
    write_geotiff(scenes / "zone_20170101.tif", 0, 100, crs="EPSG:32634")
    write_geotiff(scenes / "aside_20170101.tif", 29, 100, crs="EPSG:32633")
    write_geotiff(scenes / "nowhere_20170101.tif", 0, 100, crs=None)
    catalog = read(tmp_path)
    assert ids(catalog) == ["early_20180101__late_20200101"]
    assert only_pair(catalog).source == "footprint and date"
    reasons = {problem.item: problem.reason for problem in catalog.problems}
    assert set(reasons) == {"zone_20170101", "aside_20170101", "nowhere_20170101"}
    assert "not georeferenced" in reasons["nowhere_20170101"]
    assert "no other scene covers the same ground" in reasons["zone_20170101"]


def test_footprints_that_do_not_decide_are_reported_with_the_reason(tmp_path: Path) -> None:
    for name in ("x_20180101", "x_20190101", "x_20200101"):
        write_geotiff(tmp_path / "Images" / f"{name}.tif", 0, 100, crs="EPSG:32633")
    for name in ("left", "right"):
        write_geotiff(tmp_path / "Images" / f"{name}.tif", 500, 100, crs="EPSG:32633")
    touch(tmp_path / "Images" / "broken_UN7.tif")
    catalog = read(tmp_path)
    assert not catalog.pairs
    reasons = {problem.item: problem.reason for problem in catalog.problems}
    assert len(reasons) == len(catalog.problems) == 6
    assert "more than two scenes cover the same ground: also x_20190101, x_20200101" in reasons["x_20180101"]
    assert "dates do not say which of it and right is before" in reasons["left"]
    assert "no single scene has the unique number 8" in reasons["broken_UN7"]


# --- levir -------------------------------------------------------------------------------------------------------


def test_levir_pairs_a_b_and_label_by_stem_whatever_the_suffix_and_the_case(tmp_path: Path) -> None:
    for name in ("a/one.png", "a/two.JPG", "B/one.tif", "B/two.png", "Labels/one.png"):
        touch(tmp_path / name)
    assert levir.recognise(tmp_path, NO_OPTIONS)
    catalog = levir.read_catalog(tmp_path, NO_OPTIONS)
    one, two = catalog.pairs
    assert (one.pair_id, one.before[0].name, one.after[0].name) == ("one", "one.png", "one.tif")
    assert one.label == tmp_path / "Labels" / "one.png"
    assert (two.label, two.fold, two.before_date, two.site_id) == (None, "", "", "two")
    assert not catalog.problems


def test_levir_reports_scenes_and_labels_without_a_partner_and_doubles(tmp_path: Path) -> None:
    for name in ("A/one.png", "A/one.tif", "B/one.png", "A/only_a.png", "B/only_b.png", "label/nobody.png"):
        touch(tmp_path / name)
    catalog = levir.read_catalog(tmp_path, NO_OPTIONS)
    assert ids(catalog) == ["one"]
    assert complaints(catalog) == [("A", "one"), ("A", "only_a"), ("B", "only_b"), ("label", "nobody")]


def test_levir_reads_folds_from_subfolders_and_prefixes_names_that_repeat(tmp_path: Path) -> None:
    for name in ("train/A/1.png", "train/B/1.png", "train/label/1.png", "test/A/1.png", "test/B/1.png"):
        touch(tmp_path / name)
    for name in ("val/A/2.png", "val/B/2.png"):
        touch(tmp_path / name)
    assert levir.recognise(tmp_path, NO_OPTIONS)
    catalog = levir.read_catalog(tmp_path, NO_OPTIONS)
    assert [(pair.pair_id, pair.fold) for pair in catalog.pairs] == [
        ("2", "val"),
        ("test_1", "test"),
        ("train_1", "train"),
    ]
    assert catalog.pairs[2].source == "train/A/1.png"


def test_levir_prefixes_all_names_where_a_prefixed_one_is_taken(tmp_path: Path) -> None:
    for stem in ("train/A/1", "train/B/1", "val/A/1", "val/B/1", "test/A/train_1", "test/B/train_1"):
        touch(tmp_path / f"{stem}.png")
    assert ids(levir.read_catalog(tmp_path, NO_OPTIONS)) == ["test_train_1", "train_1", "val_1"]


def test_levir_reads_folds_from_lists(tmp_path: Path) -> None:
    for stem in ("x_1", "x_2", "y_3", "y_4"):
        touch(tmp_path / "A" / f"{stem}.png")
        touch(tmp_path / "B" / f"{stem}.png")
    for name, text in {"train": "x_1.png\nx_2\n\n", "val": "A/y_3.png B/y_3.png\nx_1\n", "test": "gone.png\n"}.items():
        touch(tmp_path / "list" / f"{name}.txt").write_text(text)
    catalog = levir.read_catalog(tmp_path, CatalogOptions(site_pattern=r"^(\w)_"))
    assert [(pair.pair_id, pair.fold, pair.site_id) for pair in catalog.pairs] == [
        ("x_1", "train", "x"),
        ("x_2", "train", "x"),
        ("y_3", "val", "y"),
        ("y_4", "", "y"),
    ]
    assert complaints(catalog) == [("list/val.txt row 2", "x_1"), ("list/test.txt row 1", "gone.png")]


def test_levir_without_a_partner_folder_or_without_scenes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    assert not levir.recognise(tmp_path, NO_OPTIONS)
    with pytest.raises(CatalogError, match="no folder B beside it"):
        levir.read_catalog(tmp_path, NO_OPTIONS)
    (tmp_path / "B").mkdir()
    with pytest.raises(CatalogError, match="hold no scenes"):
        levir.read_catalog(tmp_path, NO_OPTIONS)


def test_a_workbook_is_read_by_its_content_whatever_its_suffix(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    write_xlsx(tmp_path / "book.xlsx", [["a", "b"], [A1, B1]]).rename(tmp_path / "Rucode.xls")
    assert ids(read(tmp_path)) == [PAIR1]


@pytest.mark.parametrize("suffix", [".xls", ".xlsx"])
def test_dates_in_a_workbook_become_iso_dates_and_error_cells_are_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dates{suffix}"
    moments = [datetime.datetime(2018, 9, 22), datetime.datetime(2018, 9, 22, 10, 30)]
    if suffix == ".xls":
        book = xlwt.Workbook()
        sheet = book.add_sheet("s")
        for column, moment in enumerate(moments):
            sheet.write(2, column, moment, xlwt.easyxf(num_format_str="YYYY-MM-DD HH:MM"))
        sheet.row(2).set_cell_error(2, "#N/A!")
        sheet.write(2, 3, 91.0)
        book.save(str(path))
    else:
        write_xlsx(path, [[], [], [*moments, "#N/A", 91.0]])
    (row,) = read_sheets(path)[0].rows
    assert row == Row(3, ("2018-09-22", "2018-09-22T10:30:00", "", "91"))


# --- csv ---------------------------------------------------------------------------------------------------------


def write_table(root: Path, *lines: str, name: str = "table.csv") -> Path:
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_csv_reads_all_columns_relative_to_the_table(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("t1.tif", "t2.tif", "label.png"):
        touch(data / "oslo" / name)
    absolute = touch(tmp_path / "far_20200102.tif")
    table = write_table(
        data,
        "Before;AFTER;pair_id;label;site;before_date;after_date;fold",
        "oslo/t1.tif;oslo\\t2.tif;p1;oslo/label.png;Oslo;20180922;spring 2019;1.0",
        f"{absolute};/vsicurl/x/t2_20210304.tif;p0;;;;;Test",
    )
    assert csv.recognise(data, NO_OPTIONS)
    assert csv.recognise(table, NO_OPTIONS)
    assert csv.read_catalog(table, NO_OPTIONS) == csv.read_catalog(data, NO_OPTIONS)
    catalog = csv.read_catalog(data, NO_OPTIONS)
    assert not catalog.problems
    first, second = catalog.pairs
    assert (first.pair_id, first.site_id, first.fold, first.source) == ("p0", "p0", "test", "table.csv row 3")
    assert (first.before, first.after) == ((absolute,), (Path("/vsicurl/x/t2_20210304.tif"),))
    assert (first.before_date, first.after_date) == ("2020-01-02", "2021-03-04")
    assert (second.site_id, second.fold, second.label) == ("Oslo", "1", data / "oslo" / "label.png")
    assert (second.before_date, second.after_date) == ("2018-09-22", "spring 2019")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/deep/a.tif", "/vsis3/bucket/deep/a.tif"),
        ("gs://bucket/a.tif", "/vsigs/bucket/a.tif"),
        ("az://container/a.tif", "/vsiaz/container/a.tif"),
        ("https://host:8080/deep/a.tif", "/vsicurl/https://host:8080/deep/a.tif"),
        ("HTTP://host/a.tif", "/vsicurl/http://host/a.tif"),
        ("/vsicurl/https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("/vsizip/scenes.zip/a.tif", "/vsizip/scenes.zip/a.tif"),
    ],
)
def test_csv_spells_remote_scenes_as_gdal_opens_them(tmp_path: Path, address: str, name: str) -> None:
    assert catalog.spell_remote(address) == name
    table = write_table(tmp_path, "before,after", f"{address};{address.replace('a.tif', 'b.tif')},/vsis3/bucket/c.tif")
    pair = only_pair(csv.read_catalog(table, NO_OPTIONS))
    assert (pair.pair_id, pair.after) == ("a__c", (Path("/vsis3/bucket/c.tif"),))
    assert [gdal_name(str(path)) for path in pair.before] == [name, name.replace("a.tif", "b.tif")]


def test_csv_reads_several_files_a_date_in_the_order_of_the_cell(tmp_path: Path) -> None:
    for name in ("x/t1_20m.tif", "x/t1_10m_20180922.tif", "x/t2_10m.tif"):
        touch(tmp_path / name)
    table = write_table(tmp_path, "before,after", "x/t1_20m.tif ; x\\t1_10m_20180922.tif;,x/t2_10m.tif")
    pair = only_pair(csv.read_catalog(table, NO_OPTIONS))
    assert pair.before == (tmp_path / "x/t1_20m.tif", tmp_path / "x/t1_10m_20180922.tif")
    assert pair.after == (tmp_path / "x/t2_10m.tif",)
    assert (pair.pair_id, pair.before_date) == ("t1_20m__t2_10m", "2018-09-22")


@pytest.mark.parametrize("files", [[], ["a.tif"], ["x/a b.tif", "/vsis3/bucket/b.tif", "Ж,.tif"]])
def test_the_files_of_a_scene_survive_a_cell_of_a_table(files: list[str]) -> None:
    assert split_files(join_files(files)) == files


def test_csv_separated_by_semicolons_quotes_cells_with_several_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        touch(tmp_path / f"{name}.tif")
    table = write_table(tmp_path, "before;after", '"a.tif;b.tif";"c.tif;d.tif"')
    assert [path.stem for path in only_pair(csv.read_catalog(table, NO_OPTIONS)).before] == ["a", "b"]


def test_csv_gives_pairs_that_share_any_file_one_site(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "shared"):
        touch(tmp_path / f"{name}.tif")
    table = write_table(tmp_path, "before,after", "a.tif;shared.tif,b.tif", "c.tif,d.tif;shared.tif")
    assert {pair.site_id for pair in csv.read_catalog(table, NO_OPTIONS).pairs} == {"a__b"}


def test_csv_reports_files_of_a_date_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        touch(tmp_path / f"{name}.tif")
    table = write_table(
        tmp_path,
        "before,after,label",
        "a.tif;gone.tif,b.tif,",
        "a.tif;a.tif,b.tif,",
        "a.tif;b.tif,b.tif;a.tif,",
        "; ,b.tif,",
        "a.tif,b.tif,b.tif;c.tif",
    )
    catalog = csv.read_catalog(table, NO_OPTIONS)
    assert not catalog.pairs
    assert [(problem.item, problem.reason) for problem in catalog.problems] == [
        ("gone.tif", f"there is no before file {tmp_path / 'gone.tif'}"),
        ("a.tif;a.tif", "the cell before names a file twice"),
        ("a.tif;b.tif", "before and after are the same file"),
        ("", "the cell before is empty"),
        ("b.tif;c.tif", "a label is one file"),
    ]


@pytest.mark.parametrize("write", [write_xls, write_xlsx])
def test_csv_reads_excel_with_numbers_as_folds(tmp_path: Path, write: object) -> None:
    touch(tmp_path / "a.tif")
    touch(tmp_path / "b.tif")
    rows: Table = [["before", "after", "fold", "pair_id"], ["a.tif", "b.tif", 2.0, 17.0]]
    path = tmp_path / ("t.xls" if write is write_xls else "t.xlsx")
    (write_xls if write is write_xls else write_xlsx)(path, rows)
    assert csv.recognise(tmp_path, NO_OPTIONS)
    pair = only_pair(csv.read_catalog(path, NO_OPTIONS))
    assert (pair.fold, pair.pair_id) == ("2", "17")


def test_csv_renames_the_required_columns(tmp_path: Path) -> None:
    touch(tmp_path / "a.tif")
    touch(tmp_path / "b.tif")
    table = write_table(tmp_path, "Early,late", "a.tif,b.tif", name="mine.csv")
    options = CatalogOptions(table=table, before_column="early", after_column="2")
    assert csv.recognise(tmp_path, options)
    assert not csv.recognise(tmp_path, CatalogOptions(table=table))
    assert only_pair(csv.read_catalog(tmp_path, options)).pair_id == "a__b"
    with pytest.raises(CatalogError, match="its columns are 'Early', 'late'") as caught:
        csv.read_catalog(table, NO_OPTIONS)
    assert "--before-column" in caught.value.hint


def test_csv_tells_repeated_names_apart_by_site_or_parent_folder(tmp_path: Path) -> None:
    lines = ["before,after,site"]
    for city, site in (("city1", "A b"), ("city2", ""), ("city3/early", ""), ("city4/early", "")):
        touch(tmp_path / city / "t1.tif")
        touch(tmp_path / city / "t2.tif")
        lines.append(f"{city}/t1.tif,{city}/t2.tif,{site}")
    catalog = csv.read_catalog(write_table(tmp_path, *lines), NO_OPTIONS)
    assert not catalog.problems
    assert [(pair.pair_id, pair.site_id) for pair in catalog.pairs] == [
        ("A_b_t1__t2", "A b"),
        ("city2_t1__t2", "city2_t1__t2"),
        ("city3_early_t1__t2", "city3_early_t1__t2"),
        ("city4_early_t1__t2", "city4_early_t1__t2"),
    ]


def test_csv_gives_pairs_that_share_a_scene_one_site(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        touch(tmp_path / f"{name}.tif")
    lines = ["before,after,site_id", "a.tif,b.tif,", "b.tif,c.tif,", "c.tif,d.tif,Oslo"]
    catalog = csv.read_catalog(write_table(tmp_path, *lines), NO_OPTIONS)
    assert {pair.site_id for pair in catalog.pairs} == {"Oslo"}


def test_csv_reports_each_row_that_cannot_become_a_pair(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        touch(tmp_path / f"{name}.tif")
    table = write_table(
        tmp_path,
        "before,after,pair_id,label,fold",
        "a.tif,b.tif,one,,0",
        "",
        "a.tif,gone.tif,two,,",
        "a.tif,,three,,",
        "a.tif,b.tif,four,gone.png,",
        "b.tif,c.tif,one,,",
        "a.tif,c.tif,five,,-1",
        "a.tif,c.tif,six,,1.5",
        "a.tif,a.tif,seven,,",
        "a.tif,c.tif,eight/nine,,",
    )
    catalog = csv.read_catalog(table, NO_OPTIONS)
    assert ids(catalog) == ["one"]
    assert complaints(catalog) == [
        ("table.csv row 4", "gone.tif"),
        ("table.csv row 5", "three"),
        ("table.csv row 6", "gone.png"),
        ("table.csv row 8", "-1"),
        ("table.csv row 9", "1.5"),
        ("table.csv row 10", "a.tif"),
        ("table.csv row 11", "eight/nine"),
        ("table.csv row 7", "one"),
    ]


def test_csv_reports_a_row_that_repeats_another(tmp_path: Path) -> None:
    touch(tmp_path / "a.tif")
    touch(tmp_path / "b.tif")
    catalog = csv.read_catalog(write_table(tmp_path, "before,after", "a.tif,b.tif", "a.tif,b.tif"), NO_OPTIONS)
    assert ids(catalog) == ["a__b"]
    assert complaints(catalog) == [("table.csv row 3", "a__b")]


def test_csv_ignores_our_own_tables_and_reads_the_test_ids(tmp_path: Path) -> None:
    touch(tmp_path / "a.tif")
    touch(tmp_path / "b.tif")
    for name in ("pairs.csv", "pairs_report.csv", "tiles.csv", "submission.csv", "mine.csv"):
        write_table(tmp_path, "before,after", "a.tif,b.tif", name=name)
    write_table(tmp_path, "Id,mask", "a__b,", name="sample_submission.csv")
    write_table(tmp_path, "something,else", "1,2", name="notes.csv")
    assert csv.recognise(tmp_path, NO_OPTIONS)
    assert csv.read_catalog(tmp_path, NO_OPTIONS).test_ids == {"a__b"}
    write_table(tmp_path, "before,after", "a.tif,b.tif", name="yours.csv")
    assert not csv.recognise(tmp_path, NO_OPTIONS)
    with pytest.raises(CatalogError, match=r"found mine\.csv, yours\.csv"):
        csv.read_catalog(tmp_path, NO_OPTIONS)


def test_csv_leaves_the_competition_layout_to_its_own_format(tmp_path: Path) -> None:
    add_scenes(tmp_path, A1, B1)
    table = write_table(tmp_path, "before,after", f"{A1},{B1}", name="Rucode.csv")
    assert not csv.recognise(tmp_path, NO_OPTIONS)
    assert not csv.recognise(tmp_path, CatalogOptions(table=table))
    assert only_pair(read(tmp_path)).pair_id == PAIR1
