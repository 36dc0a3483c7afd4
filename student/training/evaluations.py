"""Evaluations during a training, and which weights are the best so far."""

from typing import Any, get_args

from ...errors import SettingError
from ..config import BestMetric
from ..distributed import Ranks
from ..evaluation.report import main_metrics
from ..losses.pca_map import PcaMap
from .checkpoints import Best, WeightsKind
from .distiller import Distiller
from .ema import WeightAverage
from .evaluate_run import HeldOutEvaluation
from .progress import TrainProgress
from .resolve import Resolved
from .resume import on_host
from .run_folder import RunFolder

_LOWER_IS_BETTER = {"soft_loss_excess"}
_PREFIX: dict[WeightsKind, str] = {"model": "eval_", "ema": "ema_eval_"}


class Evaluations:
    """Evaluates the model and its moving average on a sample of held-out images; keeps the best."""

    def __init__(
        self,
        resolved: Resolved,
        run: RunFolder | None,
        pca: PcaMap | None,
        progress: TrainProgress,
        ranks: Ranks,
    ) -> None:
        """Choose the images and the metric; every process has an object of its own.

        Raises:
            SettingError: no image is held out, or the metric does not apply to those that are.
        """
        config = resolved.config
        if not resolved.val.num_images:
            raise SettingError(
                f"eval_every {config.eval_every} needs held-out images, and val_share {config.val_share} "
                "or val_keys holds out none; give --val-share 0.05, or leave --eval-every out"
            )
        self._run, self._progress, self._ranks = run, progress, ranks
        self._held_out = HeldOutEvaluation(
            resolved, pca, max_images=config.eval_every_samples, ranks=ranks
        )
        of_teacher = main_metrics(self._held_out.teacher(is_whole=False))
        chosen = config.best_metric
        default: BestMetric = "mean_r1" if "mean_r1" in of_teacher else "image_correlation"
        self._metric: BestMetric = chosen or default
        is_needed = chosen is not None or config.export == "best"
        if is_needed and self._metric not in of_teacher:
            known = [name for name in get_args(BestMetric) if name in of_teacher]
            is_default = "" if chosen else ", the default,"
            raise SettingError(
                f"best_metric {self._metric}{is_default} does not apply to the held-out images; of these "
                f"there are {', '.join(known)}"
            )
        if chosen in ("image_cosine", "text_cosine") and not resolved.is_pulled:
            raise SettingError(
                f"best_metric {chosen} needs a term that compares the student with the teacher's embeddings, "
                "such as the cosine term; give it a weight, or take another metric"
            )
        self.best: Best | None = None

    def evaluate(
        self, step: int, distiller: Distiller, average: WeightAverage | None
    ) -> dict[str, Any]:
        """Evaluate after a step; return the numbers in rank 0, which writes the weights if they are the best.

        All processes call it, and each embeds a share of the images and texts.
        """
        found = self._of(step, distiller, "model")
        if average is not None:
            with average.swapped_in():
                found |= self._of(step, distiller, "ema")
        if self._run is not None:
            words = self._best_words(step)
            self._progress.say(f"evaluated step {step:,}: {self._line(found)}{words}")
        return found

    def _of(self, step: int, distiller: Distiller, kind: WeightsKind) -> dict[str, float]:
        student, map_ED = self._held_out.embeddings(distiller, kind)

        def measure() -> dict[str, float]:
            if self._run is None:
                return {}
            found = main_metrics(self._held_out.metrics(student, map_ED, is_whole=False))
            self._note_best(self._run, step, distiller, kind, found)
            return {_PREFIX[kind] + name: value for name, value in found.items()}

        return self._ranks.run_together(measure)

    def _note_best(
        self,
        run: RunFolder,
        step: int,
        distiller: Distiller,
        kind: WeightsKind,
        found: dict[str, float],
    ) -> None:
        value = found.get(self._metric)
        if value is not None and self._is_better(value):
            self.best = Best(step, kind, self._metric, value)
            run.save_best(self.best, on_host(distiller.state_dict()))

    def _is_better(self, value: float) -> bool:
        if self.best is None or self.best.metric != self._metric:
            return True
        is_lower = value < self.best.value
        return is_lower if self._metric in _LOWER_IS_BETTER else value > self.best.value

    def _line(self, found: dict[str, float]) -> str:
        names = {"model": "", "ema": "EMA "}
        return ", ".join(
            f"{names[kind]}{self._metric} {found[prefix + self._metric]:.4g}"
            for kind, prefix in _PREFIX.items()
            if prefix + self._metric in found
        )

    def _best_words(self, step: int) -> str:
        if self.best is None:
            return ""
        if self.best.step == step:
            return ", the best so far"
        return f"; the best is {self.best.value:.4g} of step {self.best.step:,}"
