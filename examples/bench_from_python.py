"""A small benchmark from Python: every record is a dictionary, one for each cell."""

import defend

records = defend.bench(
    dataset="digits",
    classifiers=["convnet"],
    defenses=["none", "median", "gaussian:sigma=0.1"],
    attacks=["pgd:steps=10"],
    eps=[0.1, 0.2],
    n=32,
    out="runs/example",  # run again, and nothing is computed
)
for r in records:
    print(
        f"{r['defense']:20} eps {r['eps']}  {r['knowledge']:9} by {r['gradient']:8}  clean {r['clean_accuracy']:4.0%}  robust {r['robust_accuracy']:4.0%}"
    )
