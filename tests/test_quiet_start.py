"""Whether a TPU is there."""

from pathlib import Path

from m6rec_jax.quiet_start import has_tpu


def test_a_tpu_is_no_disk_and_no_network_card(tmp_path: Path) -> None:
    def plug_in(name: str, vendor: str, kind: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")

    assert not has_tpu(tmp_path)
    plug_in("0000:00:04.0", "0x1ae0", "0x020000")  # a virtual network card of Google's
    plug_in("0000:00:05.0", "0x1ae0", "0x010802")  # a disk
    plug_in("0000:00:06.0", "0x10de", "0x030200")  # a GPU
    assert not has_tpu(tmp_path)
    plug_in("0000:00:07.0", "0x1ae0", "0x088000")
    assert has_tpu(tmp_path)
