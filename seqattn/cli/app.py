"""The Typer program: what the sub-commands are. Heavy imports stay inside the commands."""

import typer

from seqattn.cli import classification, ehr, enhance, info, speech

app = typer.Typer(
    help="Train, evaluate and use sequence models for time series, speech and health records.",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
train = typer.Typer(help="Train a model and write a run directory.", no_args_is_help=True)
evaluate = typer.Typer(help="Evaluate a run on its test data.", no_args_is_help=True)
predict = typer.Typer(help="Apply a run to new data.", no_args_is_help=True)

train.command("classification")(classification.train)
train.command("speech")(speech.train)
train.command("ehr")(ehr.train)
evaluate.command("classification")(classification.evaluate)
evaluate.command("speech")(speech.evaluate)
evaluate.command("ehr")(ehr.evaluate)
predict.command("classification")(classification.predict)
predict.command("ehr")(ehr.predict)

app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")
app.add_typer(predict, name="predict")
app.add_typer(info.listing, name="list")
app.command("enhance")(enhance.enhance)
app.command("ehr-codes")(ehr.codes)
app.command("env")(info.env)
