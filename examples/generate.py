"""Sample the demo model twice. Same seeds, same rollouts; the second time the cache knows them all."""

import time

from rolltree import Engine, EngineConfig, Request, SamplingParams, TreeDrafter
from rolltree.demo.assets import load_model, load_tokenizer

model, tokenizer = load_model(), load_tokenizer()
stop = (tokenizer.eos_token_id,)
prompts = [tokenizer(f"sum {a} 47 8 {b}\n")["input_ids"] for a in (11, 25, 38, 92) for b in (7, 63)]
requests = [
    Request(prompt, SamplingParams(max_tokens=176, stop_token_ids=stop, seed=seed))
    for prompt in prompts
    for seed in range(4)
]
engine = Engine(model, EngineConfig(slots=8, max_length=256), TreeDrafter())

first = None
for epoch in ("cold", "warm"):
    engine.stats.reset()
    start = time.perf_counter()
    results = engine.generate(requests)
    seconds = time.perf_counter() - start
    tokens_per_step = engine.stats.tokens / engine.stats.row_steps
    same = first is None or [r.token_ids for r in results] == [r.token_ids for r in first]
    print(f"{epoch}: {seconds:.2f} s, {tokens_per_step:.2f} tokens per request and step, same rollouts: {same}")
    first = results
print(tokenizer.decode(results[0].token_ids))
