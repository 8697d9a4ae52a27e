"""vLLM in this process: starts it, submits token ids, reads hidden states and applies the model's own head.

vLLM returns neither hidden states nor the logits of a whole prompt. Both exist inside the step that computes prompt
log-probabilities, after every forward pass: it knows to which request and position each row of the hidden states
belongs, whatever the scheduler put together. ``Readout`` copies the rows there. Nothing else of vLLM is changed, so
that scheduling, chunked prefill, attention and kernels are those that serve.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.capability import ScaleCheck
from harness.engines.vllm.kernels import Description, describe, held_beside_codes
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
REFUSALS = (ValueError, NotImplementedError, AssertionError, KeyError, RuntimeError)
"""What vLLM raises for a checkpoint or a setting that it cannot run; see ``VllmRuntime``."""
MEMORY_WORDS = (
    "out of memory",
    "allocate memory",
    "no available memory",
    "free memory on device",
    "available memory on node",
    "not enough gpu memory",
)
"""How vLLM and torch say that memory is short: other programs may hold it, so the checkpoint is not to blame."""


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
        self._sampled: list[tuple[list[str], torch.Tensor]] | None = None
        runner = self.model_runner
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            runner._get_prompt_logprobs_dict = self._before_first(runner, runner._get_prompt_logprobs_dict)
            runner._sample = self._sampling_first(runner, runner._sample)
        else:
            worker = runner.prompt_logprobs_worker
            worker.compute_prompt_logprobs = self._before_second(worker.compute_prompt_logprobs)
            self._hook_second_sampler(runner)

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
            whole[request] = self._sent(pieces[0][1] if len(pieces) == 1 else torch.cat([rows for _, rows in pieces]))
        return whole

    def start_sampling(self) -> None:
        """Keeps the logits that the coming steps sample from, by reference."""
        self._sampled = []

    def take_logits(self, requests: list[str]) -> torch.Tensor:
        """The last logits of these requests since ``start_sampling``, (n, vocabulary), and keeps no more of them.

        In the usual case, a single step that computed exactly these requests in this order, nothing is copied.
        """
        import torch

        steps, self._sampled = self._sampled or [], None
        if len(steps) == 1 and steps[0][0] == requests:
            return steps[0][1]
        rows = {name: logits[row] for names, logits in steps for row, name in enumerate(names)}
        return torch.stack([rows[name] for name in requests])

    def apply_head(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """The model's own logits of hidden states (n, width): (n, vocabulary); None on all workers but the first."""
        import torch

        with torch.inference_mode():
            logits = self.model_runner.model.compute_logits(hidden.to(self.model_runner.device))
        return None if logits is None else self._sent(logits)

    def _sent(self, result: torch.Tensor) -> torch.Tensor:
        """A tensor that leaves the worker: through host memory if the worker is another process, on another GPU."""
        return result if self.model_runner.parallel_config.world_size == 1 else result.cpu()

    def describe_weights(self, modules: Sequence[str]) -> Description:
        """The layers and kernels of this worker's part of the model; see ``kernels``."""
        return describe(self.model_runner.model, modules, self.model_runner.model_config.dtype)

    def check_scales(self) -> ScaleCheck:
        """Looks at the scales of this worker's part of the model."""
        from harness.models.scales import check_tensors

        return check_tensors(held_beside_codes(self.model_runner.model))

    def _before_first(self, runner: Any, following: Any) -> Any:
        """GPUModelRunner and CPUModelRunner; vLLM has not yet counted the tokens of this step as computed."""

        def step(hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
            for request in runner.input_batch.req_ids if self._reading else ():
                known = runner.requests[request]
                start = int(known.num_computed_tokens)
                rows = max(0, min(scheduled.get(request, 0), len(known.prompt_token_ids) - start))
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
                rows = max(0, min(int(batch.num_scheduled_tokens[index]), length - start))
                first = int(batch.query_start_loc_np[index])
                self._keep(request, start, hidden[first : first + rows])
            return following(head, hidden, batch, tokens, computed, lengths)

        return step

    def _sampling_first(self, runner: Any, following: Any) -> Any:
        """GPUModelRunner and CPUModelRunner: a row of logits for each request of the step, in the batch's order."""

        def sample(logits: torch.Tensor, speculated: Any) -> Any:
            if self._sampled is not None:
                self._sampled.append((list(runner.input_batch.req_ids), logits))
            return following(logits, speculated)

        return sample

    def _hook_second_sampler(self, runner: Any) -> None:
        """The second runner, whose sampler does not see the names of its rows."""
        sample, choose = runner.sample, runner.sampler.sample
        names: list[str] = []

        def sample_batch(hidden: torch.Tensor, batch: Any, grammar: Any) -> Any:
            names[:] = batch.req_ids
            return sample(hidden, batch, grammar)

        def choose_tokens(logits: torch.Tensor, *rest: Any, **more: Any) -> Any:
            if self._sampled is not None:
                self._sampled.append((list(names), logits))
            return choose(logits, *rest, **more)

        runner.sample, runner.sampler.sample = sample_batch, choose_tokens

    def _keep(self, request: str, start: int, rows: torch.Tensor) -> None:
        """Copies rows at once: vLLM reuses the buffer. A text that was preempted begins again, without them."""
        if start == 0:
            self._states[request] = {}
        if len(rows):
            self._states.setdefault(request, {})[start] = rows.clone()


READOUT = f"{Readout.__module__}.{Readout.__qualname__}"


@dataclass(frozen=True)
class EngineLimits:
    """vLLM's own limits: tokens of one text, texts at once, tokens computed in one step, and the cache.

    All ``cache_bytes`` are allocated when vLLM starts, as ``cache_blocks`` blocks of ``block_tokens`` tokens, which
    texts take as they grow.
    """

    text_tokens: int
    texts: int
    step_tokens: int
    cache_blocks: int
    block_tokens: int
    cache_bytes: int
    cache_groups: int
    cache_dtype: torch.dtype

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of the keys and values of one token: each group of layers keeps it in a block of its own."""
        return self.cache_groups * self.cache_bytes / (self.cache_blocks * self.block_tokens)

    def refusal(self, texts: int, tokens: int) -> str | None:
        """Why vLLM cannot keep that many texts of that many tokens at once, in one sentence; None if it can.

        A last token is sampled after them and not kept. One block of the cache is vLLM's own.
        """
        if texts > self.texts:
            return f"vLLM takes {self.texts} texts at once here, not {texts}: raise max_num_seqs"
        if tokens >= self.text_tokens:
            return f"vLLM takes texts of {self.text_tokens - 1} tokens here, not {tokens}: raise max_model_len"
        blocks = texts * self.cache_groups * -(-tokens // self.block_tokens)
        if blocks >= self.cache_blocks:
            return (
                f"{texts} texts of {tokens} tokens take {blocks} blocks of vLLM's cache, which has "
                f"{self.cache_blocks - 1}: raise kv_cache_memory or gpu_memory_utilization"
            )
        return None


class VllmRuntime:
    """A loaded model. Texts are token ids, and greedy decoding is the default everywhere."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of vLLM's EngineArgs.

        Raises UnsupportedError, with vLLM's own first reason, if it cannot load the checkpoint.
        """
        import torch

        if hasattr(torch._C, "_cpu") and hasattr(torch._C._cpu, "_init_amx"):
            torch._C._cpu._init_amx()  # otherwise the first product of a bfloat16 model may die of SIGILL
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        offline = UsageContext.LLM_CLASS  # vLLM chooses the size of a step by it: 4096 tokens on a CPU
        try:
            chosen = EngineArgs(**arguments, worker_extension_cls=READOUT)
            self.engine = LLMEngine.from_engine_args(chosen, usage_context=offline)
        except REFUSALS as error:
            if lacks_memory(error):
                raise MemoryError(reason(error)) from error
            if isinstance(error, RuntimeError) and type(error) not in REFUSALS:  # a GPU's fault, a port that is taken
                raise
            raise UnsupportedError(f"vLLM does not load it: {reason(error)}") from error
        self.everywhere("install_readout")
        self._names = map(str, count())
        config = self.engine.vllm_config
        cache, parallel, pool = config.cache_config, config.parallel_config, self.scheduler.kv_cache_config
        self.limits = EngineLimits(
            text_tokens=int(config.model_config.max_model_len),
            texts=int(config.scheduler_config.max_num_seqs),
            step_tokens=int(config.scheduler_config.max_num_batched_tokens),
            cache_blocks=int(cache.num_gpu_blocks or 0),
            block_tokens=int(cache.block_size),
            cache_bytes=_cache_bytes(self.worker) if self.alone else _planned_bytes(pool) * parallel.world_size,
            cache_groups=len(pool.kv_cache_groups),
            cache_dtype=pool.kv_cache_groups[0].kv_cache_spec.dtype,
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
    def scheduler(self) -> Any:
        """vLLM's scheduler. It is in this process even if the workers are not."""
        return self.engine.engine_core.engine_core.scheduler

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of Readout on every worker."""
        return list(self.engine.collective_rpc(method, args=arguments))

    def described(self, modules: Sequence[str]) -> list[Description]:
        """What each worker holds of a checkpoint with these modules."""
        return self.everywhere("describe_weights", modules)

    def check_scales(self) -> ScaleCheck:
        """Looks at the scales of what vLLM quantized, as all workers hold them."""
        return sum(self.everywhere("check_scales"), ScaleCheck())

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own logits of hidden states (…, width): (…, vocabulary)."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        # workers that are other processes would each load a GPU's tensor onto that GPU, not onto their own
        logits = self.everywhere("apply_head", rows if self.alone else rows.cpu())[0]
        return logits.reshape(*hidden.shape[:-1], -1)  # type: ignore[no-any-return]

    def states(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The final hidden states of each text, (its length, width), in order; vLLM schedules the texts.

        Raises UnsupportedError for a text that is too long.
        """
        with self.nothing_left():
            self.everywhere("start_reading")
            names = self.prefill(texts)
            found = self.everywhere("take_states", dict(zip(names, map(len, texts), strict=True)))[0]
        return [found[name] for name in names]

    def prefill(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """Reads the texts, as vLLM does before it writes; returns vLLM's own names of them."""
        from vllm import SamplingParams

        once = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        with self.nothing_left():
            names = [self.submit(text, once) for text in texts]
            for _ in self.outputs():
                pass
        return names

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """After an error nothing stays queued that a later call would meet."""
        try:
            yield
        except BaseException:
            self.engine.abort_request(list(self.scheduler.requests), internal=True)
            self.everywhere("take_states", {})
            raise

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """What the checkpoint's generation config sets, as vLLM read it when it started."""
        return dict(self.engine.input_processor.generation_config_fields)

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


class Batch:
    """Texts that vLLM reads and then continues greedily, all by one token in each step of its engine.

    What is timed is what users of vLLM wait for: whole steps, with the scheduler and the processing of outputs.
    """

    def __init__(self, runtime: VllmRuntime, texts: Sequence[Sequence[int]], new_tokens: int) -> None:
        """``new_tokens`` steps follow the reading. Raises UnsupportedError if vLLM cannot keep the texts."""
        refusal = runtime.limits.refusal(len(texts), max(map(len, texts)) + new_tokens)
        if refusal is not None:
            raise UnsupportedError(refusal)
        self._runtime = runtime
        self._texts = texts
        self._new_tokens = new_tokens
        self._names: list[str] = []
        self._requests: list[Any] = []
        self._logits: torch.Tensor | None = None
        self._chosen: torch.Tensor | None = None
        self.kept_tokens = 0
        """Tokens in the cache, over all texts."""

    def read(self) -> torch.Tensor:
        """Submits the texts and computes them; returns the logits after each, (texts, vocabulary).

        vLLM computes a limited number of tokens in a step, so this may take several. It would continue the first texts
        while it reads the last; those wait here, so that reading and writing are timed apart.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=self._new_tokens + 1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,  # as in vLLM's own offline class
        )
        self._names = [self._runtime.submit(text, params) for text in self._texts]
        self._requests = [self._runtime.scheduler.requests[name] for name in self._names]
        self._start()
        computed = -1
        while any(request.num_output_tokens == 0 for request in self._requests):
            for request in self._requests:
                request.next_decode_eligible_step = sys.maxsize if request.num_output_tokens else 0
            before, computed = computed, sum(request.num_computed_tokens for request in self._requests)
            if computed == before:
                raise InvalidRunError("vLLM schedules none of the texts that it has taken")
            self._runtime.step()
        for request in self._requests:
            request.next_decode_eligible_step = 0
        self.kept_tokens = sum(map(len, self._texts))
        return self._end(1)

    def write(self, tokens: Sequence[int]) -> torch.Tensor:
        """Continues each text by one token in one step, (texts, vocabulary): the logits after ``tokens``.

        Raises InvalidRunError if vLLM continues with other tokens than these.
        """
        written = len(self._requests[0].output_token_ids) if self._requests else 0
        if not 0 < written <= self._new_tokens:
            raise HarnessError(f"vLLM was asked for {self._new_tokens} tokens after reading, and all are written")
        self._check(tokens)
        self._start()
        self._runtime.step()
        self.kept_tokens += len(self._texts)
        return self._end(written + 1)

    def drop(self) -> None:
        """Ends what is unfinished and frees its blocks of the cache."""
        left = [name for name in self._names if name in self._runtime.scheduler.requests]
        if left:
            self._runtime.engine.abort_request(left, internal=True)
        self._names, self._requests = [], []

    def _check(self, tokens: Sequence[int]) -> None:
        """vLLM reads the tokens that it has sampled, whatever it is given. Of equally likely tokens it may take any."""
        for row, (token, request) in enumerate(zip(tokens, self._requests, strict=True)):
            sampled = request.output_token_ids[-1]
            if token != sampled and (self._logits is None or self._logits[row, token] != self._logits[row, sampled]):
                raise InvalidRunError(f"row {row} was to go on with token {token}, but vLLM sampled {sampled}")

    def _start(self) -> None:
        if self._runtime.alone:
            self._runtime.worker.start_sampling()

    def _end(self, written: int) -> torch.Tensor:
        """The logits of the step that has ended. Raises InvalidRunError unless each text has so many new tokens."""
        counts = sorted({request.num_output_tokens for request in self._requests})
        if counts != [written]:
            raise InvalidRunError(f"vLLM wrote {counts[0]} to {counts[-1]} tokens in steps of {written} for each text")
        alone = self._runtime.alone
        self._logits = self._runtime.worker.take_logits(self._names) if alone else self._choices()
        return self._logits

    def _choices(self) -> torch.Tensor:
        """Under tensor parallelism, where logits stay in the workers: 0 for the sampled tokens, else minus infinity.

        Fetching the logits would take longer than many a step. The same tensor is changed from step to step.
        """
        import torch

        tokens = torch.tensor([[request.output_token_ids[-1]] for request in self._requests])
        if self._logits is None or self._chosen is None:
            vocabulary = self._runtime.engine.vllm_config.model_config.get_vocab_size()
            self._logits = torch.full((len(tokens), vocabulary), -torch.inf)
        else:
            self._logits.scatter_(1, self._chosen, -torch.inf)
        self._chosen = tokens
        return self._logits.scatter_(1, tokens, 0.0)


def set_variables(more: Mapping[str, str]) -> None:
    """Sets vLLM's environment variables for this process. vLLM itself changes torch.compile's folder later."""
    os.environ.update(variables_for(more))


def variables_for(more: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a process that runs vLLM, with those of a recipe.

    Kernels that vLLM compiles are kept below the folder of torch.compile's, which is private, and which belongs to
    this processor's instruction sets.
    """
    kept: dict[str, str] = {}
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ and "VLLM_CACHE_ROOT" not in os.environ:
        kept["VLLM_CACHE_ROOT"] = str(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "vllm")
    return {**kept, **VARIABLES, **more}


def reason(error: BaseException) -> str:
    """What an error says, in one line. A line that announces reasons is followed by them.

    vLLM checks its configuration with pydantic, whose own message is about pydantic.
    """
    from pydantic import ValidationError

    said = str(error)
    if isinstance(error, ValidationError):
        said = str(error.errors()[0]["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    shown = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return (shown if isinstance(error, ValueError) else f"{type(error).__name__}: {shown}")[:500]


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory is short."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in MEMORY_WORDS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _planned_bytes(pool: Any) -> int:
    """The bytes of the key-value cache that vLLM plans for one worker."""
    return sum(int(tensor.size) for tensor in pool.kv_cache_tensors)


def _cache_bytes(worker: Any) -> int:
    """The bytes of the key-value cache that vLLM has allocated, each storage once."""
    from harness.numerics.kv_cache import stored_bytes

    caches = worker.model_runner.kv_caches
    if not caches:
        raise HarnessError("vLLM allocated no key-value cache")
    return stored_bytes(list(caches))
