"""Images: found, fetched from where the configuration says, or missing with what to do about it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from exec_sandbox import (
    AssetChecksumError,
    AssetDownloadError,
    AssetError,
    AssetNotFoundError,
    Scheduler,
    SchedulerConfig,
)
from exec_sandbox.platform_utils import get_cache_dir


def _installed() -> Path:
    return Path(os.environ.get("EXEC_SANDBOX_IMAGES_DIR") or get_cache_dir() / "images")


@pytest.mark.vm
async def test_a_missing_image_is_fetched_and_boots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = SchedulerConfig(images_dir=tmp_path / "images", assets_url=str(_installed()))
    with caplog.at_level("INFO", logger="exec_sandbox"):
        async with Scheduler(config) as scheduler:
            assert (await scheduler.run("echo fetched", language="raw")).stdout == "fetched\n"
    assert (tmp_path / "images" / "standard.json").read_bytes() == (_installed() / "standard.json").read_bytes()
    assert any(record.name.startswith("exec_sandbox.assets") for record in caplog.records), caplog.text


async def test_an_image_that_is_not_there_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXEC_SANDBOX_ASSETS_URL", raising=False)
    error = await _refused(SchedulerConfig(images_dir=tmp_path), AssetNotFoundError)
    assert "sbx image pull" in str(error)
    assert error.__cause__ is not None
    assert error.context["operation"] == "start"
    elsewhere = str(_installed())
    error = await _refused(
        SchedulerConfig(images_dir=tmp_path, assets_url=elsewhere, auto_download_assets=False), AssetNotFoundError
    )
    assert "sbx image pull" in str(error)
    monkeypatch.setenv("EXEC_SANDBOX_OFFLINE", "1")
    error = await _refused(SchedulerConfig(images_dir=tmp_path, assets_url=elsewhere), AssetNotFoundError)
    assert "EXEC_SANDBOX_OFFLINE" in str(error)
    assert list(tmp_path.iterdir()) == []


async def test_an_image_that_cannot_be_fetched_whole_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/images"
        # Bound and not listening: every connection is refused.
        await _refused(SchedulerConfig(images_dir=tmp_path / "images", assets_url=url), AssetDownloadError)
    bad = tmp_path / "bad"
    (bad / "blobs").mkdir(parents=True)
    manifest = (_installed() / "standard.json").read_bytes()
    (bad / "standard.json").write_bytes(manifest)
    for role in ("kernel", "initramfs", "root"):
        blob = json.loads(manifest)[role]
        with (bad / "blobs" / blob["blake3"]).open("wb") as file:
            file.truncate(blob["size_bytes"])
    await _refused(SchedulerConfig(images_dir=tmp_path / "images", assets_url=str(bad)), AssetChecksumError)
    assert not (tmp_path / "images" / "standard.json").exists()


async def _refused(config: SchedulerConfig, kind: type[AssetError]) -> AssetError:
    with pytest.raises(kind) as raised:
        await Scheduler(config).__aenter__()
    return raised.value
