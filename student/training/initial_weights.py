"""Beginning a training with the weights of another run: --init-from RUN, RUN/STEP, RUN/best, RUN/ema."""

from pathlib import Path

from ...errors import TrainError
from .checkpoints import Weights
from .distiller import Distiller
from .run_files import CONFIG, RunFiles


def find_weights(given: str) -> Weights:
    """Return the weights that --init-from names.

    Raises:
        TrainError: there is no such run, or it has no such checkpoint.
    """
    path = Path(given).absolute()
    if (path / CONFIG).is_file():
        return RunFiles(path).checkpoints.weights()
    if not (path.parent / CONFIG).is_file():
        raise TrainError(
            f"init_from {given} is no run: neither it nor the folder above has a {CONFIG}; name RUN, "
            "RUN/STEP, RUN/best or RUN/ema"
        )
    checkpoints, name = RunFiles(path.parent).checkpoints, path.name
    if name == "best":
        return checkpoints.weights("best")
    if name == "ema":
        return checkpoints.weights("ema")
    number = name.removeprefix("step-")
    if not (number.isascii() and number.isdecimal()):
        raise TrainError(f"init_from {given} ends with {name!r}, which is no step, best or ema")
    return checkpoints.weights(step=int(number))


def begin_from(distiller: Distiller, given: str | None) -> None:
    """Load the student's weights, scale and bias of another run; the learned map is fitted anew.

    Args:
        distiller: what is trained.
        given: value of --init-from; None: nothing is loaded.

    Raises:
        TrainError: there are no such weights, or they are of another architecture.
    """
    if given is None:
        return
    tensors = find_weights(given).load()
    student = {"logit_scale", "logit_bias"}
    own = {
        name: tensor
        for name, tensor in distiller.state_dict().items()
        if name.startswith("model.") or name in student
    }
    for name, tensor in own.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != tuple(tensor.shape):
            raise TrainError(
                f"init_from {given} is of another architecture than the student: {name} has the shape "
                f"{found}, expected {tuple(tensor.shape)}"
            )
    distiller.load_state_dict({name: tensors[name] for name in own}, strict=False)
