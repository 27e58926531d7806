"""`ift`: instruction fine-tuning as a system. The map of the package, in reading order.

    cli.py         the commands: each parses, calls one function, prints
    pipeline.py    the main job: prepare -> baseline -> train -> evaluate -> register
    stages.py      what each stage does;  summary.py  what a run came to
    planning.py    what will fit, and what is chosen: `ift plan` (models/shape.py, plan.py, scaling.py)
    spec.py        what a run is asked to do (strict_yaml.py: YAML that names the line of a mistake)
    prompts/       example -> instruction: templates in their sandbox, options, few-shot, chat formatting
    tasks/         what is taught and measured: tasks, the library, their metrics, the probes
    data/          rows -> examples -> the mixture -> tokens -> packs -> the stream on disk
    models/        a source -> an ordinary Hugging Face folder, and back to a verified export
    train/         the loss, the loop, the ZeRO workers under Ray Train
    evaluate/      scores of any model folder, and what tuning made it forget
    tracking/      MLflow runs, the gate, the registry, promotion and its guard, the report
    promoting.py   `ift promote`, `rollback`, `guard`;  versions.py  `ift models`;  reproducing.py  `ift reproduce`
    reporting.py   `ift report`: pages out of run folders
    packages.py    files out of packages on a package index
    storage.py     run folders, manifests, room on disk
    cluster.py     Ray: start, connect, stop;  stopping.py  SIGTERM, with a checkpoint first
    submitting.py  `ift submit`, `ift jobs`: dashboard.py reaches a cluster, parcel.py says what a job is sent,
                   following.py shows its log
    doctor/        `ift doctor`: what a machine and a cluster lack, and what to do about it
    console.py     what people see on the terminal
    redaction.py   no secret in what is told or saved
    memory.py      the peak of a run's memory
    inspection.py  `ift inspect SPEC`;  looking.py  `ift inspect RUN`
    listing.py     `ift tasks`, `ift templates`;  chatting.py  `ift chat`;  merging.py  `ift merge`

Arrows run downwards only; tests/test_architecture.py states the rules.
"""

__version__ = "0.1.0"
