"""Jobs in a real image at a real site: Balsam, Slurm, mpiexec of the host, Apptainer, the image's MPI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_tests.hpc.images import Images, site_options
from integration_tests.hpc.rig import PLUGIN, Rig

from happyneurons.jobs.spec import job_uri, make_spec, save_spec
from happyneurons.stages import load_stage


@pytest.fixture(scope="module")
def sif(images: Images) -> Path:
    return images.sif("montage")


@pytest.fixture
def rig_with_images(rig: Rig, sif: Path) -> Iterator[Rig]:
    """The rig's site, its ranks in the image for once; the sandbox stage is bound into it."""
    images = rig.folder / "images"
    images.mkdir(exist_ok=True)
    (images / "sandbox.sif").unlink(missing_ok=True)
    (images / "sandbox.sif").symlink_to(sif)
    rig.make_site(images=images, options=site_options(PLUGIN))
    yield rig
    rig.make_site()


def test_two_ranks_in_an_image_publish_the_bytes_of_two_ranks_without(rig_with_images: Rig) -> None:
    rig, digests, hosts = rig_with_images, [], []
    for native in (False, True):
        if native:
            rig.make_site()
        store = rig.new_store()
        spec = make_spec(load_stage("sandbox"), inputs={}, params={"tasks": 6})
        save_spec(store, spec)
        job = rig.submit(job_uri(store, spec.key), ranks_per_node=3)
        if not native:
            rig.request_nodes()
        rig.wait_for_state(job, "JOB_FINISHED")
        manifest = store.get_json(f"jobs/{spec.key}/manifest.json")
        assert manifest["provenance"]["workers"] == 2
        digests.append(manifest["outputs"]["numbers"]["digest"])
        hosts.append(manifest["provenance"]["image"])
    assert digests[0] == digests[1]
    assert hosts[0] != hosts[1]
