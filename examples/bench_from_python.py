"""A small benchmark from Python: `defend.bench` returns one typed record for each cell."""

import defend

records = defend.bench(
    dataset="digits",
    classifiers=["convnet"],
    defenses=["none", "median", "gaussian:sigma=0.1"],
    attacks=["pgd:steps=10"],
    eps=[0.1, 0.2],
    n=32,
    out="runs/example",  # a second run reads the units of this folder and computes nothing
)
for record in records:
    print(
        f"{record.defense:20} eps {record.eps}"
        f"  {record.knowledge:9} by {record.gradient:8}"
        f"  clean {record.clean_accuracy:4.0%}  robust {record.robust_accuracy:4.0%}"
    )
print(records[0].to_json())  # one line of JSON, as `defend bench --json` prints it
