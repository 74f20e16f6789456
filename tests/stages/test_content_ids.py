"""Ids come from content: equal rows have equal ids, and nothing else has."""

import hashlib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.content_ids import (
    canonical_json,
    content_hash,
    content_ids,
    file_sha256,
    folder_hash,
    weights_hash,
)


def ids(*rows):
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    return content_ids(frame, "row", ["a", "b"]).to_list()


def test_an_id_is_the_prefix_and_20_hex_digits_of_the_joined_values():
    digits = hashlib.sha256(b"2:ab|1:c").hexdigest()[:20]
    assert ids(("ab", "c")) == [f"row_{digits}"]


def test_lengths_are_in_bytes():
    digits = hashlib.sha256("2:é|~".encode()).hexdigest()[:20]
    assert ids(("é", None)) == [f"row_{digits}"]


def test_similar_rows_have_different_ids():
    rows = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc", ""),
        ("abc", None),
        (None, "abc"),
        ("", "abc"),
        ("~", "abc"),
        ("1:a|1:b", "c"),
        ("a", "1:b|c"),
        (None, None),
        ("", ""),
        ("~", "~"),
    ]
    assert len(set(ids(*rows))) == len(rows)


texts = st.one_of(st.none(), st.text(alphabet="a~|:1é", max_size=4))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), st.randoms())
def test_ids_are_equal_exactly_for_equal_rows_wherever_they_stand(rows, rng):
    of_row = dict(zip(rows, ids(*rows), strict=True))
    assert len(set(of_row.values())) == len(set(rows))
    moved = rows.copy()
    rng.shuffle(moved)
    assert ids(*moved) == [of_row[row] for row in moved]


def test_integers_are_hashed_by_their_digits_and_floats_are_refused():
    frame = pl.DataFrame({"n": [7], "t": ["7"], "x": [7.0]})
    assert content_ids(frame, "row", ["n"]).to_list() == content_ids(frame, "row", ["t"]).to_list()
    with pytest.raises(TypeError, match="'x' is a float"):
        content_ids(frame, "row", ["n", "x"])


def test_no_rows_give_no_ids():
    assert ids() == []


def test_canonical_json_sorts_keys_and_keeps_the_order_of_lists():
    assert canonical_json({"b": [2, 1], "a": "é"}) == '{"a":"é","b":[2,1]}'
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash([1, 2]) != content_hash([2, 1])
    assert content_hash(1) != content_hash("1")


def test_file_sha256_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # The test vector of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "a.safetensors", "b.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 3)
    return folder


@pytest.mark.parametrize("name", ["config.json", "a.safetensors", "b.safetensors"])
@pytest.mark.parametrize("place", [0, -1])
def test_weights_hash_changes_with_any_byte(model, name, place):
    before, folder_before = weights_hash(model), folder_hash(model)
    content = bytearray((model / name).read_bytes())
    content[place] ^= 1
    (model / name).write_bytes(content)
    assert weights_hash(model) != before
    assert folder_hash(model) != folder_before


def test_weights_hash_sees_swapped_renamed_and_lost_files(model):
    seen = {weights_hash(model)}
    first, second = model / "a.safetensors", model / "b.safetensors"
    texts = first.read_bytes(), second.read_bytes()
    first.write_bytes(texts[1])
    second.write_bytes(texts[0])
    seen.add(weights_hash(model))
    second.rename(model / "c.safetensors")
    seen.add(weights_hash(model))
    first.unlink()
    seen.add(weights_hash(model))
    assert len(seen) == 4


def test_weights_hash_ignores_where_the_folder_lies_and_what_is_no_weight(model, tmp_path):
    before = weights_hash(model)
    (model / "tokenizer.json").write_bytes(b"other")
    assert weights_hash(model.rename(tmp_path / "moved")) == before


def test_folder_hash_counts_the_tokenizer_but_no_records(model):
    before = folder_hash(model)
    for record in ("manifest.json", "training.json", "README.md", "training_metrics.parquet"):
        (model / record).write_text("made on a Tuesday")
    assert folder_hash(model) == before
    (model / "tokenizer.json").write_bytes(b"other")
    assert folder_hash(model) != before


@pytest.mark.parametrize("lost", [["config.json"], ["a.safetensors", "b.safetensors"]])
def test_weights_hash_wants_config_and_weights(model, lost):
    for name in lost:
        (model / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(model)):
        weights_hash(model)


def test_weights_hash_and_folder_hash_of_no_folder(tmp_path):
    for hashed in (weights_hash, folder_hash, file_sha256):
        with pytest.raises(FileNotFoundError):
            hashed(tmp_path / "nowhere")
