"""The commands of `prefmill`, by what they are for."""

from flows.commands.asking import diff, report, runs, sql, why
from flows.commands.checking import doctor, selftest
from flows.commands.curating import curate, export, sweep
from flows.commands.judging import card
from flows.commands.keeping import lineage
from flows.commands.resuming import resume
from flows.commands.running import demo, refresh, rounds
from flows.commands.serving import down, up
from flows.commands.training import reward_model, sft, train, train_file

COMMANDS = (
    demo,
    refresh,
    rounds,
    resume,
    train,
    train_file,
    sft,
    reward_model,
    curate,
    sweep,
    export,
    runs,
    sql,
    why,
    diff,
    report,
    card,
    lineage,
    doctor,
    selftest,
    up,
    down,
)
