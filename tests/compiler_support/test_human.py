"""Counts in words: a noun, its article and its verb go with the number."""

from svitc.support import human


def test_one_and_several():
    assert [human.counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [human.counted(n, "batch") for n in (1, 3)] == ["1 batch", "3 batches"]
    assert [human.subject(n, "layer") for n in (1, 2)] == ["1 layer is", "2 layers are"]
    assert human.subject(1, "call", "was", "were") == "1 call was"
    assert [human.article(noun) for noun in ("int", "list")] == ["an int", "a list"]
