"""Runs in vLLM's environment: scores choices of one token with one LoRA module per member.

Reads one JSON line of settings and answers `READY`; then, for each line, scores all rows under all members and answers
`SCORED` with the seconds and the choices' log-probabilities `[M, E, C]`.
"""

import json
import sys
import time

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    """Serve until the input ends."""
    given = json.loads(sys.stdin.readline())
    rows, folders, options = given["rows"], given["adapters"], given["options"]
    engine = LLM(
        model=given["base"],
        dtype="float32",
        enable_lora=True,
        max_loras=len(folders),
        max_lora_rank=given["rank"],
        max_model_len=given["longest"],
        max_num_batched_tokens=given["batched_tokens"],
        enable_prefix_caching=False,  # otherwise only the first round would compute
        enforce_eager=True,
        disable_log_stats=True,
        seed=0,
    )
    prompts = [{"prompt_token_ids": row} for _ in folders for row in rows]
    members = [LoRARequest(f"m{m}", m + 1, folder) for m, folder in enumerate(folders) for _ in rows]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=options, detokenize=False)
    print("READY", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        outputs = engine.generate(prompts, sampling, lora_request=members, use_tqdm=False)
        seconds = time.perf_counter() - started
        scored = [[one.outputs[0].logprobs[0][option].logprob for option in options] for one in outputs]
        answers = [scored[m * len(rows) : (m + 1) * len(rows)] for m in range(len(folders))]
        print("SCORED " + json.dumps({"seconds": seconds, "log_probs": answers}), flush=True)


if __name__ == "__main__":
    main()
