"""The files of an image, from its layers: whiteouts, links, and what leads out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.images.tree import LayerEntry, LayerError, Tree


def folder(name: str, **fields: int) -> LayerEntry:
    return LayerEntry(name=name, kind="folder", mode=fields.get("mode", 0o755))


def file(name: str, content: int = 0) -> LayerEntry:
    return LayerEntry(name=name, kind="file", content=content)


def symlink(name: str, target: str) -> LayerEntry:
    return LayerEntry(name=name, kind="symlink", link=target)


def hardlink(name: str, target: str) -> LayerEntry:
    return LayerEntry(name=name, kind="hardlink", link=target)


def of(*layers: list[LayerEntry]) -> Tree:
    tree = Tree()
    for layer in layers:
        tree.add_layer(layer)
    return tree


def places(tree: Tree) -> dict[str, str]:
    """Every path, and what is there: the number of a file's content, the target of a link, or "/" for a folder."""
    return {
        path: "/" if node.children is not None else node.entry.link or str(node.entry.content)
        for path, node in tree.walk()
    }


def test_a_later_layer_replaces_a_file_and_merges_a_folder() -> None:
    tree = of([folder("a"), file("a/x", 1), file("a/y", 2)], [folder("a", mode=0o700), file("a/x", 3)])
    assert places(tree) == {"a": "/", "a/x": "3", "a/y": "2"}
    assert (tree.root.children or {})["a"].entry.mode == 0o700


def test_a_file_that_takes_a_folders_place_takes_all_of_it() -> None:
    assert places(of([file("a/x", 1)], [file("a", 2)])) == {"a": "2"}
    assert places(of([file("a", 1)], [folder("a"), file("a/x", 2)])) == {"a": "/", "a/x": "2"}


def test_a_whiteout_hides_what_is_below_and_not_what_its_own_layer_has() -> None:
    below = [folder("a"), file("a/x", 1), file("a/y", 2)]
    assert places(of(below, [file("a/.wh.x")])) == {"a": "/", "a/y": "2"}
    assert places(of(below, [file(".wh.a")])) == {}
    for order in ([file("a/.wh.x"), file("a/x", 3)], [file("a/x", 3), file("a/.wh.x")]):
        assert places(of(below, order)) == {"a": "/", "a/x": "3", "a/y": "2"}


def test_an_opaque_folder_hides_all_that_it_had_wherever_the_mark_stands() -> None:
    below = [folder("a/b"), file("a/x", 1)]
    mark, new = file("a/.wh..wh..opq"), file("a/new", 2)
    for order in ([folder("a"), mark, new], [new, mark], [mark, new]):
        assert places(of(below, order)) == {"a": "/", "a/new": "2"}


def test_a_folder_in_a_links_place_hides_nothing_behind_the_link() -> None:
    below = [folder("real"), file("real/x", 1), symlink("a", "real")]
    above = [folder("a"), file("a/.wh..wh..opq"), file("a/y", 2)]
    assert places(of(below, above)) == {"real": "/", "real/x": "1", "a": "/", "a/y": "2"}


def test_links_to_folders_are_followed_within_the_image_alone() -> None:
    tree = of(
        [folder("usr/lib"), symlink("lib", "usr/lib"), symlink("up", "../../../usr"), symlink("all", "/")],
        [file("lib/x", 1), file("up/y", 2), file("all/usr/z", 3), file("lib/.wh.none")],
    )
    kinds = places(tree)
    assert {name: kinds[name] for name in ("usr/lib/x", "usr/y", "usr/z")} == {
        "usr/lib/x": "1",
        "usr/y": "2",
        "usr/z": "3",
    }


def test_a_hard_link_is_another_name_of_a_file_of_a_layer_below() -> None:
    tree = of([file("a/x", 1)], [hardlink("b/y", "/a/x"), file("a/x", 2)])
    assert places(tree) == {"a": "/", "a/x": "2", "b": "/", "b/y": "1"}
    tree = of([file("x", 1)], [hardlink("y", "x")])
    assert len({node for _, node in tree.walk()}) == 1


def test_absolute_names_are_the_images_own() -> None:
    assert places(of([file("/etc/passwd", 1), folder("./"), folder("/")])) == {"etc": "/", "etc/passwd": "1"}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([[file("../etc/passwd")]], "'../etc/passwd' leads out of the image by `..`"),
        ([[file("a/../../x")]], "'a/../../x' leads out"),
        ([[hardlink("x", "../../shadow")]], "'x' leads out of the image by `..`: it is a link to '../../shadow'"),
        ([[hardlink("x", "none")]], "'x' is a hard link to 'none', which is not there"),
        ([[folder("a"), hardlink("x", "a")]], "which is a folder"),
        ([[file("a")], [file("a/x")]], "'a/x' is below what is no folder"),
        ([[symlink("a", "b"), symlink("b", "a"), file("a/x")]], "'a/x' is below what is no folder"),
        ([[file("/")]], "is the root, and no folder"),
        ([[file("a\0b")]], "has a name that no file can have"),
        ([[file("a/" * 3000)]], "has a name that no file can have"),
    ],
)
def test_what_no_image_may_have_is_refused(layers: list[list[LayerEntry]], reason: str) -> None:
    with pytest.raises(LayerError) as raised:
        of(*layers)
    assert reason in str(raised.value)


def test_device_nodes_are_left_out_and_counted_beside_those_of_dev() -> None:
    device = LayerEntry(name="srv/disk", kind="device")
    tree = of([file("srv/disk", 1)], [device, LayerEntry(name="dev/sda", kind="device")])
    assert (places(tree), tree.devices) == ({"srv": "/", "dev": "/"}, 1)


def test_three_hundred_layers_are_one_tree() -> None:
    layers = [[file(f"f{number % 7}", number)] for number in range(300)]
    assert places(of(*layers)) == {f"f{number % 7}": str(number) for number in range(293, 300)}


_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_LAYERS = st.lists(
    st.lists(
        st.one_of(
            st.builds(folder, _NAMES),
            st.builds(file, _NAMES, st.integers(0, 9)),
            st.builds(symlink, _NAMES, st.sampled_from(("a", "../b", "/c", "/", "a/b", "..", "../../x"))),
            st.builds(lambda name: file("/".join([*name.split("/")[:-1], f".wh.{name[-1]}"])), _NAMES),
            st.builds(lambda name: file(f"{name}/.wh..wh..opq"), _NAMES),
            st.builds(hardlink, _NAMES, _NAMES),
        ),
        max_size=6,
    ),
    max_size=4,
)


@given(_LAYERS)
def test_every_place_is_below_folders_that_are_no_links(layers: list[list[LayerEntry]]) -> None:
    tree = Tree()
    for layer in layers:
        try:
            tree.add_layer(layer)
        except LayerError:
            return
    kinds = {path: node.children is not None for path, node in tree.walk()}
    for path in kinds:
        parts = path.split("/")
        assert not set(parts) & {"", ".", ".."}
        assert not any(part.startswith(".wh.") for part in parts)
        assert all(kinds["/".join(parts[:number])] for number in range(1, len(parts)))


@given(st.lists(st.lists(st.tuples(_NAMES, st.booleans()), max_size=5), max_size=4))
def test_files_and_whiteouts_alone_give_what_a_plain_model_gives(layers: list[list[tuple[str, bool]]]) -> None:
    """The model: a set of paths. A file takes the place of all that has its name as a folder."""
    model: set[str] = set()
    tree = Tree()
    for layer in layers:
        adds = dict.fromkeys(name for name, white in layer if not white)
        whites = [name for name, white in layer if white]
        entries = [file("/".join([*name.split("/")[:-1], f".wh.{name[-1]}"])) for name in whites]
        try:
            tree.add_layer([*(file(name) for name in adds), *entries])
        except LayerError:
            return  # a file below a file
        model = {path for path in model if not any(f"{path}/".startswith(f"{name}/") for name in whites)}
        for name in adds:
            model = {path for path in model if not path.startswith(f"{name}/")} | {name}
    assert {path for path, node in tree.walk() if node.children is None} == model
