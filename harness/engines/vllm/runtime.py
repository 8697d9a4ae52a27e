"""vLLM in this process: starts it, submits token ids, reads hidden states and applies the model's own head.

vLLM returns neither hidden states nor the logits of a whole prompt. Both exist inside the step that computes prompt
log-probabilities, after every forward pass: it knows to which request and position each row of the hidden states
belongs, whatever the scheduler put together. ``Readout`` copies the rows there. Nothing else of vLLM is changed, so
that scheduling, chunked prefill, attention and kernels are those that serve.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, InvalidRunError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

VARIABLES: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: its memory is measured, tensors are not copied
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM's own choice leaves a core unused
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one token more than the context, which is sampled but never read
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_PROGRESS_BAR": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Set before vLLM is imported. A recipe's ``env`` comes after them."""


class Readout:
    """What the harness adds to vLLM's worker: vLLM mixes it in by name (``worker_extension_cls``).

    With tensor parallelism there is a worker per GPU. All compute the same final hidden states, and all must take part
    in applying the head.
    """

    model_runner: Any

    def install_readout(self) -> None:
        """Hooks the step that computes prompt log-probabilities, in vLLM's first or second model runner."""
        self._reading = False
        self._states: dict[str, dict[int, torch.Tensor]] = {}
        runner = self.model_runner
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            runner._get_prompt_logprobs_dict = self._before_first(runner, runner._get_prompt_logprobs_dict)
        else:
            worker = runner.prompt_logprobs_worker
            worker.compute_prompt_logprobs = self._before_second(worker.compute_prompt_logprobs)

    def start_reading(self) -> None:
        self._reading = True

    def take_states(self, lengths: Mapping[str, int]) -> dict[str, torch.Tensor] | None:
        """The states of these requests, (length, width) each; None on all workers but the first.

        Raises InvalidRunError if a position is missing.
        """
        import torch

        taken, self._states, self._reading = self._states, {}, False
        if getattr(self, "rank", 0) != 0:
            return None
        whole: dict[str, torch.Tensor] = {}
        for request, length in lengths.items():
            pieces = sorted(taken.get(request, {}).items())
            ends = [start + len(rows) for start, rows in pieces]
            if [start for start, _ in pieces] != [0, *ends[:-1]] or ends[-1:] != [length]:
                raise InvalidRunError(f"vLLM did not compute every position of a text of {length} tokens once")
            whole[request] = pieces[0][1] if len(pieces) == 1 else torch.cat([rows for _, rows in pieces])
        return whole

    def apply_head(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """The model's own logits of hidden states (n, width): (n, vocabulary); None on all workers but the first."""
        import torch

        with torch.inference_mode():
            logits: torch.Tensor | None = self.model_runner.model.compute_logits(hidden)
        return logits

    def _before_first(self, runner: Any, following: Any) -> Any:
        """GPUModelRunner and CPUModelRunner; vLLM has not yet counted the tokens of this step as computed."""

        def step(hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
            for request in runner.input_batch.req_ids if self._reading else ():
                known = runner.requests[request]
                start = int(known.num_computed_tokens)
                rows = min(scheduled.get(request, 0), len(known.prompt_token_ids) - start)
                first = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request]])
                self._keep(request, start, hidden[first : first + rows])
            return following(hidden, scheduled)

        return step

    def _before_second(self, following: Any) -> Any:
        """The second runner's PromptLogprobsWorker, which is called with what the step has computed."""

        def step(head: Any, hidden: torch.Tensor, batch: Any, tokens: Any, computed: Any, lengths: Any) -> Any:
            for index, request in enumerate(batch.req_ids if self._reading else ()):
                start = int(batch.num_computed_prefill_tokens_np[index])
                length = int(lengths[batch.idx_mapping_np[index]])
                rows = min(int(batch.num_scheduled_tokens[index]), length - start)
                first = int(batch.query_start_loc_np[index])
                self._keep(request, start, hidden[first : first + rows])
            return following(head, hidden, batch, tokens, computed, lengths)

        return step

    def _keep(self, request: str, start: int, rows: torch.Tensor) -> None:
        """Copies rows at once: vLLM reuses the buffer. A text that was preempted begins again, and replaces them."""
        if len(rows):
            self._states.setdefault(request, {})[start] = rows.clone()


READOUT = f"{Readout.__module__}.{Readout.__qualname__}"


@dataclass(frozen=True)
class Limits:
    """vLLM's own limits: tokens of one text, texts at once, tokens computed in one step, and the cache's size."""

    text_tokens: int
    texts: int
    step_tokens: int
    cache_blocks: int
    block_tokens: int
    cache_bytes: int


class Runtime:
    """A loaded model. Texts are token ids, and greedy decoding is the default everywhere."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of vLLM's EngineArgs.

        Raises UnsupportedError, with vLLM's own first reason, if it cannot load the checkpoint.
        """
        import torch

        if hasattr(torch._C, "_cpu") and hasattr(torch._C._cpu, "_init_amx"):
            torch._C._cpu._init_amx()  # otherwise the first product of a bfloat16 model may die of SIGILL
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments, worker_extension_cls=READOUT))
        except (ValueError, NotImplementedError, RuntimeError, AssertionError, KeyError) as error:
            if any(word in str(error).lower() for word in ("out of memory", "allocate memory")):
                raise
            raise UnsupportedError(f"vLLM does not load it: {reason(error)}") from error
        self.everywhere("install_readout")
        self._names = map(str, count())
        config = self.engine.vllm_config
        cache = config.cache_config
        self.limits = Limits(
            text_tokens=int(config.model_config.max_model_len),
            texts=int(config.scheduler_config.max_num_seqs),
            step_tokens=int(config.scheduler_config.max_num_batched_tokens),
            cache_blocks=int(cache.num_gpu_blocks or 0),
            block_tokens=int(cache.block_size),
            cache_bytes=_cache_bytes(self.worker) if self.alone else 0,
        )

    @property
    def alone(self) -> bool:
        """Whether the only worker is in this process."""
        return bool(self.engine.vllm_config.parallel_config.world_size == 1)

    @property
    def worker(self) -> Any:
        """vLLM's worker in this process, with ``model_runner``. Raises UnsupportedError if there are several."""
        if not self.alone:
            raise UnsupportedError("vLLM's workers are processes of their own under tensor parallelism")
        return self.engine.model_executor.driver_worker.worker

    @property
    def model(self) -> Any:
        """The torch module that vLLM runs."""
        return self.worker.model_runner.model

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of Readout on every worker."""
        return list(self.engine.collective_rpc(method, args=arguments))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own logits of hidden states (…, width): (…, vocabulary)."""
        logits = self.everywhere("apply_head", hidden.reshape(-1, hidden.shape[-1]))[0]
        return logits.reshape(*hidden.shape[:-1], -1)  # type: ignore[no-any-return]

    def states(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The final hidden states of each text, (its length, width), in order; vLLM schedules the texts.

        Raises UnsupportedError for a text that is too long.
        """
        self.everywhere("start_reading")
        names = self.prefill(texts)
        found = self.everywhere("take_states", dict(zip(names, map(len, texts), strict=True)))[0]
        return [found[name] for name in names]

    def prefill(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """Reads the texts, as vLLM does before it writes; returns vLLM's own names of them."""
        from vllm import SamplingParams

        once = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        names = [self.submit(text, once) for text in texts]
        for _ in self.outputs():
            pass
        return names

    def submit(self, tokens: Sequence[int], params: SamplingParams) -> str:
        """Queues a text; returns vLLM's own name of it. Raises UnsupportedError for one that is too long."""
        longest = self.limits.text_tokens - 1
        if len(tokens) > longest:
            raise UnsupportedError(
                f"a text of {len(tokens)} tokens; vLLM takes {longest} here: raise max_model_len, or kv_cache_memory"
            )
        return str(self.engine.add_request(next(self._names), {"prompt_token_ids": list(tokens)}, params))

    def step(self) -> list[RequestOutput]:
        """One step of the engine: schedules, computes, samples."""
        return list(self.engine.step())

    def outputs(self) -> Iterator[RequestOutput]:
        """Steps until nothing is left to do; yields what is finished."""
        while self.engine.has_unfinished_requests():
            yield from (output for output in self.step() if output.finished)

    def close(self) -> None:
        """Ends the engine and frees its memory; the object cannot be used afterwards."""
        import gc

        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.engine.engine_core.shutdown()
        del self.engine
        cleanup_dist_env_and_memory()
        gc.collect()


def set_variables(more: Mapping[str, str]) -> None:
    """Sets vLLM's environment variables for this process."""
    os.environ.update({**VARIABLES, **more})


def reason(error: BaseException) -> str:
    """The first line of the error that began a chain of errors: vLLM wraps what its workers raise."""
    seen: list[BaseException] = [error]
    while (before := seen[-1].__cause__ or seen[-1].__context__) is not None and before not in seen:
        seen.append(before)
    for each in reversed(seen):
        lines = [line.strip() for line in str(each).splitlines() if line.strip()]
        if lines:
            return f"{type(each).__name__}: {lines[0]}"[:500]
    return type(error).__name__


def _cache_bytes(worker: Any) -> int:
    """The bytes of the key-value cache that vLLM has allocated, each storage once."""
    from harness.numerics.kv_cache import stored_bytes

    caches = worker.model_runner.kv_caches
    if not caches:
        raise HarnessError("vLLM allocated no key-value cache")
    return stored_bytes(list(caches))
