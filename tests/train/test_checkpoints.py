"""Which checkpoints a restart may use, and when a training counts as finished."""

from pathlib import Path

from cai.train.checkpoints import (
    FINISHED,
    TrainResult,
    checkpoint_folder,
    finished_result,
    last_checkpoint,
    mark_complete,
    mark_finished,
)


def checkpoint(out: Path, step: int, fingerprint: str | None) -> Path:
    folder = checkpoint_folder(out) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"weights")
    if fingerprint is not None:
        mark_complete(folder, fingerprint)
    return folder


def test_the_newest_whole_checkpoint_is_taken_and_torn_ones_go(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9, "a")
    newest = checkpoint(tmp_path, 10, "a")
    torn = checkpoint(tmp_path, 11, None)
    assert last_checkpoint(tmp_path, "a") == newest
    assert not torn.exists()


def test_another_trainings_checkpoints_go(tmp_path: Path) -> None:
    other = checkpoint(tmp_path, 5, "b")
    assert last_checkpoint(tmp_path, "a") is None
    assert not other.exists()


def test_a_torn_marker_is_no_marker(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 5, "a")
    (folder / "cai_checkpoint.json").write_text('{"finger')
    assert last_checkpoint(tmp_path, "a") is None


def test_finished_means_marker_fingerprint_and_weights(tmp_path: Path) -> None:
    result = TrainResult(3, 10, {"too_long": 1}, {"loss": 0.5}, 1.5)
    checkpoint(tmp_path, 5, "a")
    mark_finished(tmp_path, "a", result)
    assert finished_result(tmp_path, "a") is None, "no weights"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    assert finished_result(tmp_path, "a") == result
    assert finished_result(tmp_path, "b") is None
    assert not checkpoint_folder(tmp_path).exists()
    (tmp_path / FINISHED).write_text("{")
    assert finished_result(tmp_path, "a") is None
