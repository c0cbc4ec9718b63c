"""Restores the two halves of `TwoTowers` from two checkpoints of T5X."""

from collections.abc import Sequence

from flax import core
from t5x import checkpoints, train_state

from dera_jax.models.finite import check_params
from dera_jax.t5x.two_towers import TOWERS


class PairManager:
    """What T5X asks of a checkpoint manager when it infers or evaluates: `restore`.

    T5X's own CHECKPOINT_PATH is the aligned model's. Each half may be a legacy or an orbax
    checkpoint; arrays go straight to where T5X's partitioner wants them.
    """

    def __init__(
        self,
        directory: str,
        train_state: train_state.TrainState,
        partitioner: object,
        dataset_iterator: object = None,
        save_dtype: str | None = None,
        restore_dtype: str | None = None,
        keep: int | None = None,
        period: int | None = None,
        reference_path: str | None = None,
    ):
        """All but `reference_path` are T5X's.

        Raises:
            ValueError: no reference_path, or the model is not one of two towers.
        """
        if not reference_path:
            raise ValueError(
                "PairManager: the reference's checkpoint is not given: add "
                '--gin.REFERENCE_PATH=\\"/path/checkpoint_N\\"'
            )
        if set(train_state.params) != set(TOWERS):
            raise ValueError(
                f"PairManager: the model's parameters are {sorted(train_state.params)}, not those of "
                "dera_jax.t5x.two_towers.TwoTowers"
            )
        self._reference_path, self._directory = reference_path, directory
        self._train_state = train_state
        self._settings = {
            "partitioner": partitioner,
            "dataset_iterator": dataset_iterator,
            "save_dtype": save_dtype,
            "restore_dtype": restore_dtype,
            "keep": keep,
            "period": period,
        }

    def restore(
        self,
        path: str,
        fallback_state: object = None,
        state_transformation_fns: Sequence[object] = (),
    ) -> train_state.TrainState:
        """The pair, with the step of the aligned model at `path`.

        Raises:
            ValueError: a fallback or a transformation, which would be of one model, not of two.
            FloatingPointError: a parameter is NaN or infinite.
        """
        if fallback_state is not None or state_transformation_fns:
            raise ValueError(
                "PairManager: neither fallback_to_scratch nor assignment_map is possible"
            )
        aligned = self._half("aligned", self._directory).restore(path=path)
        reference = self._half("reference", self._reference_path).restore(path=self._reference_path)
        params = {"reference": reference.params, "aligned": aligned.params}
        check_params(params, f"the pair of {self._reference_path} and {path}")
        return self._train_state.replace(step=aligned.step, params=core.freeze(params))

    def _half(self, name: str, directory: str) -> checkpoints.OrbaxCheckpointManagerInterface:
        state = self._train_state
        axes = state.params_axes[name]
        half = state.replace(params=state.params[name], params_axes=axes)
        return checkpoints.OrbaxCheckpointManagerInterface(
            directory=directory, train_state=half, **self._settings
        )
