"""Sources of a mixed run on the command line, in TOML, in config.json and in the hybrid runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tyro
from small import write_frames, write_video

from tubelet.data.sources import DataSource
from tubelet.errors import TubeletError
from tubelet.methods import source_words, videomae, videomae_v2
from tubelet.methods.run import changed, from_dict, to_dict
from tubelet.methods.videomae_v2 import Hybrid
from tubelet.verbs.begin import listed

TOML = """
[[source]]
name = "k710"
data = "k710.csv"
sampling_rate = 4
weight = 1

[[source]]
name = "ssv2"
data = "/data/ssv2.csv"
root = "frames"
kind = "frames"
fps = 12
weight = 0.5
"""


def test_words_become_sources_and_back(tmp_path: Path) -> None:
    words = [
        "k710=/data/k710.csv,sampling_rate=4,weight=0.5",
        "ssv2=ssv2.csv,root=frames,kind=frames,fps=12,template=image_{:06}.jpg,start=0,weight=1",
    ]
    sources = (
        DataSource("k710", "/data/k710.csv", sampling_rate=4, weight=0.5),
        DataSource(
            *("ssv2", "ssv2.csv", "frames", "frames"),
            fps=12.0,
            template="image_{:06}.jpg",
            start=0,
            weight=1.0,
        ),
    )
    assert source_words.from_words(words) == sources
    assert source_words.from_words(source_words.to_words(sources)) == sources
    run = tyro.cli(videomae.VideoMAE, args=["--sources", *words, "--drop-path", "0.1"])
    assert (run.sources, run.drop_path) == (sources, 0.1)
    assert tyro.cli(videomae.VideoMAE, args=[], default=run).sources == sources


def test_a_toml_file_holds_several(tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_text(TOML)
    found = source_words.from_words([f"{tmp_path}/mix.toml", "own=more"])
    assert found == (
        DataSource("k710", f"{tmp_path}/k710.csv", sampling_rate=4, weight=1.0),
        DataSource(
            *("ssv2", "/data/ssv2.csv", f"{tmp_path}/frames", "frames"), fps=12.0, weight=0.5
        ),
        DataSource("own", "more"),
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a=b,wieght=1", r"--sources a has no field 'wieght'\. Did you mean 'weight'\?"),
        ("a=b,weight=much", r"--sources a: weight is 'much', expected a number"),
        ("a=b,sampling_rate=2.5", "sampling_rate is '2.5', expected a whole number"),
        ("a=b,c", "'c' is no FIELD=VALUE.*TOML"),
        ("a=b,weight=1,weight=2", "weight is given twice"),
        ("a=b,data=c", "data is given twice"),
        ("videos", "--sources videos has no data: expected NAME=LIST"),
        ("=videos", "has no name"),
        ("none.toml", "none.toml cannot be read as TOML"),
    ],
)
def test_words_that_say_nothing(word: str, message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        source_words.from_words([word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[sources]]\nname = "a"', r"has sources: expected \[\[source\]\] tables alone"),
        ("", r"has nothing: expected \[\[source\]\]"),
        ('[[source]]\nname = "a"\ndata = "b"\nwieght = 1', "source a has no field 'wieght'"),
        ('[[source]]\ndata = "b"', "source 1 has no name"),
        ('[[source]]\nname = "a"\ndata = "b"\nsampling_rate = 2.5', "expected a whole number"),
        ('[[source]]\nname = "a"\ndata = ["b"]', r"data is \['b'\], expected a text"),
        ('[[source]]\nname = "a"\ndata = "b"\ntemplate = 5', "template is 5, expected a text"),
        ("source = [1, 2]", r"has nothing: expected \[\[source\]\]"),
        ("name = ", "cannot be read as TOML"),
    ],
)
def test_toml_that_says_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(TubeletError, match=message):
        source_words.from_words([f"{tmp_path}/mix.toml"])


def test_a_run_keeps_its_sources_in_json() -> None:
    sources = (DataSource("a", "b", weight=0.5), DataSource("c", "d", "e", "frames", fps=12.0))
    run = changed(videomae_v2.base_hybrid, sources=sources, k710="videos")
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run


# --- the hybrid runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "base", "large", "huge", "giant"])
def test_hybrid_runs_take_the_five_paths(size: str) -> None:
    run = getattr(videomae_v2, f"{size}_hybrid")
    assert isinstance(run, Hybrid)
    assert (run.mixed(), run.lacking) == ((), ())


def test_the_published_strides_of_the_five(tmp_path: Path) -> None:
    """Specification, 4.2 and 5.2."""
    write_video(tmp_path / "videos/0.mp4")
    for name in ("ssv2", "ava"):
        template = "image_{:06}.jpg" if name == "ava" else "img_{:05}.jpg"
        write_frames(tmp_path / name / "0", first=1, template=template)
    (tmp_path / "ssv2.csv").write_text("ssv2/0 1 12\n")
    paths = {"ssv2": "ssv2.csv", "ava": "ava"}
    run = changed(
        videomae_v2.base_hybrid,
        **{name: str(tmp_path / paths.get(name, "videos")) for name in videomae_v2.SOURCES},
    )
    assert [(s.name, s.kind, s.sampling_rate, s.weight) for s in run.mixed()] == [
        ("k710", "video", 4, None),
        ("ssv2", "frames", 2, None),
        ("ava", "frames", 4, None),
        ("webvid", "video", 4, None),
        ("own", "video", 4, None),
    ]
    assert run.lacking == ()
    videos = listed(run)
    assert [part.clip.sampling_rate for part in videos.parts] == [4, 2, 4, 4, 4]
    assert videos.entries[1].path == f"{tmp_path}/ssv2/0/img_{{:05}}.jpg[1:12@12]"
    assert videos.entries[2].path == f"{tmp_path}/ava/0/image_{{:06}}.jpg[1:12]"
    ssv2 = changed(run, ssv2=str(tmp_path / "videos")).mixed()[1]
    assert (ssv2.kind, ssv2.sampling_rate) == ("video", 2)


def test_some_of_the_five_will_do(tmp_path: Path) -> None:
    write_video(tmp_path / "0.mp4")
    run = changed(videomae_v2.base_hybrid, k710="0.mp4", own="0.mp4", root=str(tmp_path))
    assert run.lacking == ("ssv2", "ava", "webvid")
    run = changed(run, k710=str(tmp_path), own=str(tmp_path))
    assert listed(run).notes == (
        "of the sources of the published recipe, ssv2 and ava and webvid are missing",
    )


def test_one_way_to_give_videos(tmp_path: Path) -> None:
    run = changed(videomae_v2.base_hybrid, data="videos", k710="others")
    with pytest.raises(TubeletError, match=r"Both --data videos and sources \(k710\)"):
        listed(run)
    with pytest.raises(TubeletError, match=r"pass --k710, .* \(or --data, --sources\)"):
        listed(videomae_v2.base_hybrid)
    with pytest.raises(TubeletError, match=r"pass --data \(or --sources\)"):
        listed(videomae.base_k400)
