"""Lists of videos from every source, and the message for every way in which they can be wrong."""

import json
import os
from pathlib import Path

import pytest
import torch

from tubelet.data.lists import Entry, VideoList, read_list, splits_of
from tubelet.data.missing import missing_files
from tubelet.errors import TubeletError


@pytest.fixture
def tree(tmp_path):
    """Makes files (their content is not read by lists); returns (make, folder)."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path

    return make


@pytest.fixture
def written(tree):
    """Writes list.csv beside a.mp4, b c.mp4, d,e.MP4, f.webm; returns what read_list makes of it."""

    def read(text: str, name: str = "list.csv", **options) -> VideoList:
        folder = tree("a.mp4", "b c.mp4", "d,e.MP4", "f.webm")
        (folder / name).write_text(text)
        return read_list(folder / name, **options)

    return read


def pairs(videos: VideoList) -> list[tuple[str, object]]:
    return [(os.path.relpath(e.path, videos.root or "."), e.label) for e in videos.entries]


# --- the published text formats ------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 1\nb c.mp4 0\nd,e.MP4 1\n",  # VideoMAE
        "a.mp4  1\nb c.mp4  0\nd,e.MP4  1\n",  # its guide, with two spaces
        "a.mp4,1\nb c.mp4,0\nd,e.MP4,1\n",
        'a.mp4,1\n"b c.mp4",0\n"d,e.MP4",1\n',
        "a.mp4\t1\nb c.mp4\t0\nd,e.MP4\t1\n",
        "a.mp4;1\nb c.mp4;0\nd,e.MP4;1\n",
        "a.mp4::1\nb c.mp4::0\nd,e.MP4::1\n",  # V-JEPA
        "a.mp4, 1\r\nb c.mp4, 0\r\n\r\nd,e.MP4, 1\r\n",
        "\ufeffa.mp4 1.0\nb c.mp4 0.0\n# comment\nd,e.MP4 1.0",
        'path,label\na.mp4,1\nb c.mp4,0\n"d,e.MP4",1\n',
        "Label;Video\n1;a.mp4\n0;b c.mp4\n1;d,e.MP4\n",
        "video_path\tclip_id\tlabel\na.mp4\t7\t1\nb c.mp4\t8\t0\nd,e.MP4\t9\t1\n",
        "path label\na.mp4 1\nb c.mp4 0\nd,e.MP4 1\n",
    ],
)
def test_delimiter_and_header_are_recognised(written, text):
    videos = written(text)
    assert pairs(videos) == [("a.mp4", 1), ("b c.mp4", 0), ("d,e.MP4", 1)]
    assert (videos.kind, videos.classes) == ("single", ("0", "1"))


def test_names_are_sorted_classes_and_may_hold_spaces(written):
    videos = written("a.mp4 riding a bike\nb c.mp4 archery\nd,e.MP4 riding a bike\n")
    assert videos.classes == ("archery", "riding a bike")
    assert [e.label for e in videos.entries] == [1, 0, 1]
    assert written("a.mp4,riding a bike\nb c.mp4,archery\n").classes == videos.classes


def test_lists_without_labels(written):
    assert pairs(written("a.mp4\nb c.mp4\n")) == [("a.mp4", None), ("b c.mp4", None)]
    published = written("a.mp4 0 -1\nb c.mp4 0 -1\n")  # VideoMAE V2's pretraining list
    assert (published.kind, len(published)) == ("unlabelled", 2)
    assert "pretraining list" in published.notes[0]
    hidden = written("a.mp4 -1\nb c.mp4 -1\n")
    assert hidden.kind == "unlabelled" and "-1" in hidden.notes[0]
    assert written("a.mp4 x y z\nb c.mp4 5\n", kind="unlabelled").entries[0].label is None


def test_extensionless_paths_get_mp4(tree):
    folder = tree("clips/abc.mp4", "clips/plain")
    (folder / "list.txt").write_text("clips/abc 1\nclips/plain 0\n")
    assert pairs(read_list(folder / "list.txt")) == [("clips/abc.mp4", 1), ("clips/plain", 0)]


def test_multi_label(written):
    for text in ("a.mp4 0 2\nb c.mp4 1\n", "path,labels\na.mp4,0|2\nb c.mp4,1\n"):
        videos = written(text)
        assert (videos.kind, videos.classes) == ("multi", ("0", "1", "2"))
        assert [e.label for e in videos.entries] == [(0, 2), (1,)]
        assert torch.equal(videos.target(0), torch.tensor([1.0, 0.0, 1.0]))
    named = written('path,labels\na.mp4,"run;jump"\nb c.mp4,\n', kind="multi")
    assert named.classes == ("jump", "run")
    assert torch.equal(named.target(1), torch.zeros(2))  # shows none of them


def test_regression(written):
    videos = written("a.mp4 0.5\nb c.mp4 2\n")
    assert (videos.kind, videos.classes, videos.targets) == ("regression", (), 1)
    assert torch.equal(videos.target(1), torch.tensor([2.0]))
    pair = written("a.mp4 1 2\nb c.mp4 3 4\n", kind="regression")
    assert pair.targets == 2 and torch.equal(pair.target(1), torch.tensor([3.0, 4.0]))


def test_a_column_can_be_named(written):
    text = "path,what,how\na.mp4,3,left\nb c.mp4,0,right\n"
    assert written(text, column="how").classes == ("left", "right")
    assert [e.label for e in written(text, column="what").entries] == [3, 0]
    assert written(text).kind == "unlabelled"
    with pytest.raises(TubeletError, match=r"Its unused columns: what, how"):
        written(text, kind="single")
    with pytest.raises(TubeletError, match=r"no column 'who'.*path, what, how"):
        written(text, column="who")
    with pytest.raises(TubeletError, match="no header line"):
        written("a.mp4 1\n", column="how")


def test_split_column(written):
    text = "path,label,split\na.mp4,0,train\nb c.mp4,1,validation\nf.webm,1,train\n"
    assert [p for p, _ in pairs(written(text, split="train"))] == ["a.mp4", "f.webm"]
    assert [p for p, _ in pairs(written(text, split="val"))] == ["b c.mp4"]
    with pytest.raises(
        TubeletError, match=r"no row of split 'test'. Its splits: train, validation"
    ):
        written(text, split="test")


def test_jsonl(written):
    lines = [{"path": "a.mp4", "label": "run"}, {"video": "b c.mp4", "label": "jump"}]
    videos = written("\n".join(map(json.dumps, lines)), "list.jsonl")
    assert pairs(videos) == [("a.mp4", 1), ("b c.mp4", 0)]
    multi = written(
        '{"path": "a.mp4", "label": [0, 1]}\n{"path": "b c.mp4", "label": []}', "l.jsonl"
    )
    assert [e.label for e in multi.entries] == [(0, 1), ()]
    other = written('{"path": "a.mp4", "what": 1, "split": "train"}', "l.jsonl", column="what")
    assert other.entries[0].label == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"path": "a.mp4"', "not JSON"),
        ('{"label": 3}', 'no "path" in it; it has label'),
        ('{"path": 3}', "the path is a int"),
        ('{"path": "a.mp4", "label": {"x": 1}}', "the label is a dict"),
        ('{"path": "a.mp4", "label": true}', "the label is a bool"),
    ],
)
def test_bad_jsonl_lines_are_named(written, line, why):
    with pytest.raises(TubeletError) as error:
        written('{"path": "b c.mp4", "label": 0}\n' + line, "list.jsonl")
    assert "line 2" in str(error.value) and why in str(error.value)


# --- what is wrong with a line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a.mp4 0\nhello world\n", 2, "no path with a video extension, and no such file"),
        ("a.mp4 0\nb c.mp4,1,train\n", 2, "2 fields after the path"),
        ("a.mp4 0\nb c.mp4\n", 2, "no label"),
        ("a.mp4 0\nb c.mp4 -2\n", 2, "label -2 is negative"),
        ("a.mp4 run\nb c.mp4 jump\nf.webm 3\n", 3, "the number 3, where other lines have names"),
        ("a.mp4 1\nb c.mp4 2\nf.webm run\n", 3, "the name 'run', where other lines have numbers"),
        ("path,label\na.mp4,1\nd,e.MP4,1\n", 3, "3 fields, and the header names 2"),
        ("a.mp4 0.5\nb c.mp4 high\n", 2, "'high' is not a number"),
        ("a.mp4 0.5\nb c.mp4 0.5 1.5\n", 2, "2 numbers, the first has 1"),
    ],
)
def test_bad_lines_are_named_and_shown(written, text, line, why):
    with pytest.raises(TubeletError) as error:
        written(text)
    message = str(error.value)
    shown = text.splitlines()[line - 1]
    assert f"line {line}: {shown!r}: {why}" in message
    assert "list.csv: 1 of " in message


def test_only_the_first_bad_lines_are_shown_and_all_counted(written):
    with pytest.raises(TubeletError) as error:
        written("a.mp4 0\n" + "".join(f"nothing{i} 0\n" for i in range(30)))
    message = str(error.value)
    assert "30 of 31 lines" in message and "... and 25 more" in message
    assert message.count("\n") == 7


def test_missing_files_are_named_by_line(written):
    with pytest.raises(TubeletError) as error:
        written("a.mp4 0\nclips/no.mp4 1\nf.mp4 1\n")
    message = str(error.value)
    assert "2 of 3 lines" in message
    assert "line 2: 'clips/no.mp4 1'" in message and "clips/no.mp4 does not exist" in message
    assert "f.mp4 does not exist (f.webm does)" in message
    assert "--root" in message


def test_missing_files_can_be_let_pass(written):
    assert len(written("a.mp4 0\nno.mp4 1\n", must_exist=False)) == 2


def test_missing_files_in_a_large_folder(tree):
    folder = tree(*(f"v/{i:03d}.mp4" for i in range(50)))
    paths = [str(folder / f"v/{i:03d}.mp4") for i in range(60)]
    assert missing_files(paths) == list(range(50, 60))
    assert missing_files(["no/where.mp4"] * 20) == list(range(20))


def test_frame_folders_are_explained(tree):
    folder = tree("clip1/00001.jpg")
    (folder / "list.txt").write_text("clip1 300 2\n")
    with pytest.raises(TubeletError, match=r"a folder: .*kind=frames.*img_\{:05\}\.jpg\[1:45\]"):
        read_list(folder / "list.txt")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_empty_list(written, text):
    with pytest.raises(TubeletError, match="has no lines"):
        written(text)


def test_not_a_text_file(tree):
    folder = tree("a.mp4")
    (folder / "binary.csv").write_bytes(b"\x00\x01\x02")
    (folder / "latin.csv").write_bytes("a.mp4 1\nb.mp4 caf\xe9\n".encode("latin-1"))
    with pytest.raises(TubeletError, match="not a text file"):
        read_list(folder / "binary.csv")
    with pytest.raises(TubeletError, match="line 2: not UTF-8"):
        read_list(folder / "latin.csv")


# --- roots -----------------------------------------------------------------------------------


def test_roots(tree, monkeypatch):
    folder = tree("videos/a.mp4", "lists/train.csv")
    file = folder / "lists" / "train.csv"
    file.write_text("a.mp4 0\n")
    expected = str(folder / "videos" / "a.mp4")
    assert read_list(file, root=folder / "videos").entries[0].path == expected
    with pytest.raises(TubeletError, match="say where the videos are"):
        read_list(file)
    file.write_text("videos/a.mp4 0\n")
    monkeypatch.chdir(folder)  # relative to the working directory, where that is where they are
    assert os.path.samefile(read_list(file).entries[0].path, expected)
    file.write_text(f"{expected} 0\n")
    assert read_list(file, root="elsewhere").entries[0].path == expected


# --- class numbers ---------------------------------------------------------------------------


def test_another_list_sets_the_classes(written):
    train = written("a.mp4 run\nb c.mp4 jump\nf.webm walk\n")
    val = written("a.mp4 walk\n", labels_from=train)
    assert (val.classes, val.entries[0].label) == (("jump", "run", "walk"), 2)
    assert written("a.mp4 2\n", labels_from=train).entries[0].label == 2
    with pytest.raises(TubeletError) as error:
        written("a.mp4 run\nb c.mp4 wlak\n", labels_from=train)
    assert "no class is called 'wlak'; did you mean 'walk'?" in str(error.value)
    with pytest.raises(TubeletError) as error:
        written("a.mp4 run\nb c.mp4 3\n".replace("run", "0"), labels_from=train)
    assert "label 3, and the highest is 2" in str(error.value)
    assert "There are 3 classes, numbered from 0: jump, run, walk." in str(error.value)


def test_gaps_are_noted(written):
    assert not written("a.mp4 0\nb c.mp4 1\n").notes
    assert "1 of 3 classes have no video: 1" in written("a.mp4 0\nb c.mp4 2\n").notes[0]
    assert "count from 1" in written("a.mp4 1\nb c.mp4 2\n").notes[0]


def test_repeats_are_noted(written):
    videos = written("a.mp4 0\nb c.mp4 1\na.mp4 1\n")
    assert "1 lines repeat a video listed before, 1 with another label" in videos.notes[0]


def test_kinds(written):
    with pytest.raises(TubeletError, match="kind is 'multi-label'"):
        written("a.mp4 0\n", kind="multi-label")
    with pytest.raises(TubeletError, match="2 labels, where one is expected"):
        written("a.mp4 0 1\n", kind="single")
    assert written("a.mp4 3\n", kind="multi").entries[0].label == (3,)
    assert written("a.mp4 3\n", kind="regression").entries[0].label == (3.0,)
    with pytest.raises(TubeletError, match=r"0.5 is not a class number"):
        written("a.mp4 0.5\n", kind="single")


# --- folders ---------------------------------------------------------------------------------


def test_class_folders(tree):
    folder = tree("run/b.mp4", "run/a.mp4", "jump/deep/c.avi", "jump/.hidden.mp4", "jump/note.txt")
    (folder / "walk").mkdir()
    videos = read_list(folder)
    assert (videos.kind, videos.classes) == ("single", ("jump", "run", "walk"))
    assert pairs(videos) == [("jump/deep/c.avi", 0), ("run/a.mp4", 1), ("run/b.mp4", 1)]
    assert "no video: walk" in videos.notes[0]
    assert read_list(folder, kind="unlabelled").classes == ()


def test_numbered_class_folders_keep_their_names(tree):
    folder = tree("0/a.mp4", "2/b.mp4", "10/c.mp4")
    videos = read_list(folder)
    assert videos.classes == ("0", "10", "2")
    again = read_list(folder, labels_from=videos)
    assert again.entries == videos.entries
    (folder / "list.txt").write_text("2/b.mp4 2\n10/c.mp4 10\n")  # a number names its class
    assert [e.label for e in read_list(folder / "list.txt", labels_from=videos).entries] == [2, 1]


def test_folder_of_videos(tree):
    folder = tree("b.mp4", "a.mp4", "more/c.mkv", "thumb.jpg")
    videos = read_list(folder)
    assert pairs(videos) == [("a.mp4", None), ("b.mp4", None), ("more/c.mkv", None)]
    assert any("1 images beside" in note for note in videos.notes)
    assert any("not read as classes" in note for note in videos.notes)
    with pytest.raises(TubeletError, match="holds no class folders"):
        read_list(folder, kind="single")


def test_folder_of_images(tree):
    videos = read_list(tree("cat/a.jpg", "dog/b.png"))
    assert (videos.classes, len(videos)) == (("cat", "dog"), 2)


def test_symbolic_links_are_followed_once(tree):
    folder = tree("data/run/a.mp4", "data/jump/b.mp4")
    (folder / "linked").mkdir()
    (folder / "linked" / "run").symlink_to(folder / "data" / "run")
    (folder / "linked" / "loop").symlink_to(folder / "linked")
    assert [p for p, _ in pairs(read_list(folder / "linked"))] == ["run/a.mp4"]


def test_empty_folder_says_what_was_looked_for(tree):
    folder = tree("data/readme.txt", "data/x/notes.md")
    with pytest.raises(TubeletError) as error:
        read_list(folder / "data")
    message = str(error.value)
    assert "No videos in" in message and ".mp4" in message and ".jpg" in message
    assert "1 .txt" in message and "1 .md" in message
    (folder / "void").mkdir()
    with pytest.raises(TubeletError, match="found no files"):
        read_list(folder / "void")


def test_splits_of_a_folder(tree):
    folder = tree("train/run/a.mp4", "train/jump/b.mp4", "valid/run/c.mp4", "other/d.mp4")
    assert list(splits_of(folder)) == ["train", "val"]
    train = read_list(folder)
    assert [p for p, _ in pairs(train)] == ["jump/b.mp4", "run/a.mp4"]
    assert "has the splits train, val: train was taken" in train.notes[0]
    for name in ("val", "valid"):
        val = read_list(folder, split=name, labels_from=train)
        assert (val.classes, pairs(val)) == (("jump", "run"), [("run/c.mp4", 1)])
    assert len(read_list(folder, split="other", kind="unlabelled")) == 1
    with pytest.raises(TubeletError, match=r"no split 'test'.*It has: train, val"):
        read_list(folder, split="test")


def test_list_files_in_a_folder(tree):
    folder = tree("videos/a.mp4", "videos/b.mp4")
    (folder / "train.csv").write_text("videos/a.mp4 0\n")
    (folder / "val.csv").write_text("videos/b.mp4 0\n")
    assert pairs(read_list(folder)) == [("videos/a.mp4", 0)]
    assert pairs(read_list(folder, split="val")) == [("videos/b.mp4", 0)]


def test_one_class_folder_is_taken_where_labels_are_known(tree):
    folder = tree("run/a.mp4")
    assert read_list(folder).kind == "unlabelled"
    assert read_list(folder, kind="single").classes == ("run",)
    assert read_list(folder, labels_from=("jump", "run")).entries[0].label == 1


def test_nothing_there(tree):
    folder = tree("data/a.mp4")
    with pytest.raises(TubeletError) as error:
        read_list(folder / "daat")
    assert "no file or folder" in str(error.value) and "has: data" in str(error.value)


# --- Python ----------------------------------------------------------------------------------


def test_python_lists(tree):
    folder = tree("a.mp4", "b.mp4")
    a, b = folder / "a.mp4", str(folder / "b.mp4")
    assert read_list([a, b]).kind == "unlabelled"
    named = read_list([(a, "run"), (b, "jump")])
    assert named.entries == (Entry(str(a), 1), Entry(b, 0))
    assert read_list([{"path": a, "label": 1}, (b, torch.tensor(0))]).entries[1].label == 0
    assert read_list(["a.mp4"], root=folder).entries[0].path == str(a)
    assert read_list(b).entries == (Entry(b),)  # one video
    with pytest.raises(TubeletError, match="empty"):
        read_list([])
    with pytest.raises(TubeletError, match=r"item 1: .*the path is a int"):
        read_list([a, 3])
    with pytest.raises(TubeletError, match=r"item 0: .*does not exist"):
        read_list(["/no/such.mp4"])


# --- identity --------------------------------------------------------------------------------


def test_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    lists = []
    for place in ("one", "two"):
        for name in ("run/a.mp4", "jump/b.mp4"):
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        lists.append(read_list(tmp_path / place))
    assert lists[0].fingerprint() == lists[1].fingerprint()
    assert len(lists[0].fingerprint()) == 64
    (tmp_path / "two" / "jump" / "b.mp4").rename(tmp_path / "two" / "run" / "b.mp4")
    assert read_list(tmp_path / "two").fingerprint() != lists[0].fingerprint()
    relabelled = read_list(tmp_path / "one", kind="unlabelled")
    assert relabelled.fingerprint() != lists[0].fingerprint()
