from __future__ import annotations

import shlex
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.run_command import RunCommand
from medical_diffusion_components.transforms.volume_error import VolumeError

OBLIQUE = np.array([[0.2, -0.9, 0.1, -20.0], [0.9, 0.2, 0.1, 7.0], [-0.1, 0.05, -2.0, 100.0], [0, 0, 0, 1]])


def volume():
    voxels = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32))
    return MetaTensor(voxels, affine=torch.from_numpy(OBLIQUE), meta={"filename_or_obj": "raw.nii"})


def python(code):
    return f"{shlex.quote(sys.executable)} -c {shlex.quote('import sys, nibabel as nib; ' + code)} {{input}} {{output}}"


def test_the_command_gets_the_voxels_in_their_places_and_its_result_comes_back_on_the_same_axes():
    run = RunCommand(
        python("i = nib.load(sys.argv[1]); nib.save(nib.Nifti1Image(i.get_fdata() * 2, i.affine), sys.argv[2])")
    )
    out = run(volume())
    torch.testing.assert_close(out.as_tensor(), 2 * volume().as_tensor())
    np.testing.assert_allclose(out.affine, OBLIQUE)
    assert out.meta["filename_or_obj"] == "raw.nii"


def test_a_result_turned_to_other_axes_is_turned_back():
    code = "nib.save(nib.as_closest_canonical(nib.load(sys.argv[1])), sys.argv[2])"
    torch.testing.assert_close(RunCommand(python(code))(volume()).as_tensor(), volume().as_tensor())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no licence')", "failed with status 1: no licence"),
        ("pass", "wrote no"),
        ("import time; time.sleep(60)", "longer than 1 s"),
        ("open(sys.argv[2], 'w').write('x')", "cannot be read"),
        ("i = nib.load(sys.argv[1]); nib.save(i.slicer[1:], sys.argv[2])", "keep the grid"),
        ("i = nib.load(sys.argv[1]); i.affine[0, 3] += 9; nib.save(i, sys.argv[2])", "keep the grid"),
    ],
)
def test_a_command_that_does_not_deliver_refuses_the_case(code, message):
    with pytest.raises(VolumeError, match=message):
        # only the one that sleeps may run out of time: a busy machine takes seconds to start Python
        RunCommand(python(code), timeout=1 if "sleep" in code else 60)(volume())


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(VolumeError, match="no-such-tool cannot be run"):
        RunCommand("no-such-tool {input} {output}")(volume())


def test_no_shell_reads_the_command(tmp_path):
    with pytest.raises(VolumeError):
        RunCommand(f"true {{input}} {{output}} ; touch {tmp_path}/made")(volume())
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"needs \{input\} and \{output\}"):
        RunCommand("hd-bet {input}")


def test_the_volume_is_not_named_by_its_raw_file(tmp_path):
    seen = tmp_path / "arguments"
    code = f"open({str(seen)!r}, 'w').write(' '.join(sys.argv)); nib.save(nib.load(sys.argv[1]), sys.argv[2])"
    RunCommand(python(code))(volume())
    assert "raw" not in seen.read_text()
