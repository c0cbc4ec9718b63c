"""Restores the reference and aligned models of `TwoTowers` from two T5X checkpoints."""

from collections.abc import Sequence

from flax import core
from t5x import checkpoints, train_state

from dera_jax.models.finite import check_params
from dera_jax.t5x.two_towers import TOWERS


class PairManager:
    """Restores a pair of models: the part of T5X's checkpoint manager that inference needs.

    T5X's own CHECKPOINT_PATH is the aligned model's. Each checkpoint may be in T5X's legacy or in
    the orbax format. Arrays are loaded with the sharding that T5X's partitioner gives them.
    """

    def __init__(
        self,
        directory: str,
        train_state: train_state.TrainState,
        reference_path: str | None = None,
        **settings: object,
    ):
        """Takes T5X's arguments, and `reference_path`, the reference policy's checkpoint.

        `settings` are those of T5X's manager: partitioner, dtypes, how many checkpoints to keep.

        Raises:
            ValueError: `reference_path` is not given, or the model is not a `TwoTowers`.
        """
        if not reference_path:
            raise ValueError(
                "PairManager: the checkpoint of the reference policy is not given; add "
                '--gin.REFERENCE_PATH=\\"/path/checkpoint_N\\"'
            )
        if set(train_state.params) != set(TOWERS):
            raise ValueError(
                f"PairManager: the model's parameters are {sorted(train_state.params)}, not those of "
                "dera_jax.t5x.two_towers.TwoTowers"
            )
        self._reference_path, self._directory = reference_path, directory
        self._train_state = train_state
        self._settings = settings

    def restore(
        self,
        path: str,
        fallback_state: object = None,
        state_transformation_fns: Sequence[object] = (),
    ) -> train_state.TrainState:
        """Restores both models; `path` and the step are the aligned model's.

        Raises:
            ValueError: a fallback state or a transformation is given; both are made for one model.
            FloatingPointError: a parameter is NaN or infinite.
        """
        if fallback_state is not None or state_transformation_fns:
            raise ValueError(
                "PairManager: fallback_to_scratch and assignment_map are not supported; remove them"
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
