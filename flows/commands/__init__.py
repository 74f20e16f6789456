"""The commands of `prefmill`, by what they are for."""

from flows.commands.asking import report, runs, sql, why
from flows.commands.checking import doctor, selftest
from flows.commands.curating import curate, export, sweep
from flows.commands.keeping import lineage
from flows.commands.running import demo, refresh, rounds
from flows.commands.training import train, train_file

COMMANDS = (
    demo,
    refresh,
    rounds,
    train,
    train_file,
    curate,
    sweep,
    export,
    runs,
    sql,
    why,
    report,
    lineage,
    doctor,
    selftest,
)
