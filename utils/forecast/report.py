"""The forecast as text on standard output."""

from utils.forecast.architecture import Architecture
from utils.forecast.communication import sent_bytes, step_time
from utils.forecast.fit import advice, largest_batch
from utils.forecast.flops import flops_per_token
from utils.forecast.inference import cache_bytes, cache_dtype, inference_memory
from utils.forecast.parameters import count_parameters, parameter_table, symbols, weight_bytes
from utils.forecast.plan import PARTS, Plan
from utils.forecast.step import training_memory
from utils.forecast.trained_weights import TrainedWeights
from utils.forecast.units import format_bytes


def print_parameters(config: Architecture) -> None:
    """Print every kind of weight with its shape, its count as a formula, and its share of all parameters."""
    total = count_parameters(config)
    print("Parameters")
    for letter, (name, value) in symbols(config).items():
        print(f"  {letter} = {value:<8,} {name}")
    print(f"\n  {'weight':36}{'shape':>16}  {'formula':38}{'count':>15}{'share':>8}")
    for row in parameter_table(config):
        shape = " x ".join(f"{side:,}" for side in row.shape)
        print(f"  {row.component:36}{shape:>16}  {row.formula:38}{row.count:>15,}{row.count / total:>8.1%}")
    if config.tied_head:
        print(f"  {'head.weight':54}{'shared with the token embedding':38}{0:>15}{0:>8.1%}")
    print(f"  {'total':92}{total:>15,}{1:>8.1%}")


def print_training(config: Architecture, plan: Plan) -> None:
    """Print the memory of a training step: its parts at the peak, and the peak of each phase."""
    memory = training_memory(config, plan)
    print(f"\nTraining memory at the peak of a step: {describe_plan(plan)}")
    print(f"  trained parameters: {TrainedWeights(config, plan).total:,}")
    for part, size in memory.parts.items():
        print(f"  {part:22}{format_bytes(size):>12}{size / memory.total:>8.1%}   {PARTS[part]}")
    print(f"  {'total':22}{format_bytes(memory.total):>12}{1:>8.1%}")
    context = memory.parts["context and allocator"]
    peaks = ", ".join(f"{phase} {format_bytes(peak + context)}" for phase, peak in memory.phases.items())
    print(f"  peak of each phase: {peaks}")
    if plan.is_sharded:
        print(f"  FSDP divides weights, gradients and optimizer state among the {device_name(plan)}s")
    if plan.device == "cuda":
        print("  measured within 3% on an H100, before training steps became CUDA graphs; torch.compile needs less")


def describe_plan(plan: Plan) -> str:
    """Return a plan in words."""
    batch = f"batch size {plan.batch_size}"
    if plan.accumulation > 1:
        batch += f" x {plan.accumulation} micro-batches"
    dtype = f"{plan.dtype} autocast" if plan.autocast else plan.dtype
    words = [batch, dtype, {"muon": "Muon and AdamW", "adamw": "AdamW"}[plan.optimizer]]
    if plan.activation_checkpointing:
        words.append("activation checkpointing")
    if plan.ema:
        words.append("moving average of the weights")
    if plan.lora_rank is not None:
        words.append(f"LoRA of rank {plan.lora_rank} on {' '.join(plan.lora_targets)}")
    if plan.trainable_blocks is not None:
        words.append(f"trainable_blocks {plan.trainable_blocks}")
    if plan.gpus > 1:
        words.append(f"per {device_name(plan)} with {plan.strategy.upper()} on {plan.gpus:,} {device_name(plan)}s")
    if plan.device == "cpu":
        words.append("on a CPU")
    elif plan.gpus == 1:
        words.append("on one GPU")
    return ", ".join(words)


def device_name(plan: Plan) -> str:
    """Return the word for one of the devices of a plan."""
    return "GPU" if plan.device == "cuda" else "rank"


def print_inference(config: Architecture, device: str) -> None:
    """Print the memory of generating or classifying one text, by dtype of the weights."""
    T = config.block_size
    if config.n_labels is None:
        print(f"\nInference memory: generating one text, from a prompt of {T:,} tokens, the full context length")
    else:
        print(f"\nInference memory: classifying one text of {T:,} tokens, the full context length")
    for dtype in ("float32", "bfloat16", "int8"):
        peak = inference_memory(config, T, dtype, device).total
        print(f"  {dtype:9} weights {format_bytes(weight_bytes(config, dtype)):>11}   peak {format_bytes(peak):>11}")
    if config.n_labels is None:
        dtype = cache_dtype("bfloat16", device)
        counts = sorted({1, max(1, T // 4), T})
        fill = ", ".join(f"{format_bytes(cache_bytes(config, n, dtype))} after {n:,}" for n in counts)
        print(f"  KV cache in {dtype}: {fill} tokens; allocated in full at the start")


def print_fit(config: Architecture, plan: Plan, memory: int) -> None:
    """Print the largest batch size that fits in `memory` bytes, and settings that fit if the plan does not."""
    per_device = f" per {device_name(plan)}" if plan.gpus > 1 else ""
    print(f"\nWith {format_bytes(memory)} of memory{per_device}")
    print(f"  largest batch size: {largest_batch(config, plan, memory)}")
    if training_memory(config, plan).total <= memory:
        print("  this plan fits")
    else:
        print(f"  this plan does not fit\n  with train.py, {advice(config, plan, memory)}")


def print_time(config: Architecture, plan: Plan, *, flops: float | None, tokens_per_second: float | None,
               tokens: float | None, price: float | None) -> None:
    """Print the time and the cost of training.

    `flops` are the operations per second of one GPU, `tokens_per_second` is the throughput of all, `price` that of one
    GPU for one hour; None: unknown.
    """
    per_token = flops_per_token(config, plan)
    print(f"\nTraining time\n  floating-point operations per token, forward and backward: {per_token:.4g}")
    if flops and not tokens_per_second:
        tokens_per_second = flops * plan.gpus / per_token
    if not tokens_per_second:
        print("  for hours, give --tokens, and --flops or --tokens_per_second")
        return
    print(f"  tokens per second: {tokens_per_second:,.0f}")
    if tokens:
        hours = tokens / tokens_per_second / 3600
        print(f"  {tokens:,.0f} tokens: {hours:,.2f} hours")
        if price:
            print(f"  cost: {hours * plan.gpus * price:,.2f}")


def print_communication(config: Architecture, plan: Plan, flops: float | None, link: float | None) -> None:
    """Print what several GPUs send in a training step and, given `flops` and `link`, how long that takes."""
    sent = sent_bytes(config, plan)
    parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in sent.items())
    print(f"\nCommunication\n  each {device_name(plan)} sends {format_bytes(sum(sent.values()))} per step: {parts}")
    if not (flops and link):
        print("  for seconds, give --flops and --link")
        return
    time = step_time(config, plan, flops, link)
    tokens = plan.gpus * plan.batch_size * plan.accumulation * config.block_size
    print(f"  seconds per step: computation {time.computation:.4g}, communication {time.communication:.4g}")
    for overlap, seconds in (("without overlap", time.without_overlap), ("with full overlap", time.with_full_overlap)):
        print(f"  {overlap}: {tokens / seconds:,.0f} tokens per second, {time.computation / seconds:.0%} of the speed "
              "without communication")
