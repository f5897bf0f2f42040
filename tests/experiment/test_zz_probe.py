import json, torch, numpy as np, shutil, traceback
from sklearn.metrics import *
def attempt(command, *a):
    try:
        d = command(*a); print(a[:2], a[-3:], d.code, d.out[-300:], d.err[-300:])
        return d
    except BaseException as e:
        print("TRACEBACK", a[:2], a[-3:], type(e), str(e)[:300])
def test_probe(command, train, toy, new_toy, unequal_run, in_tmp, capsys):
    with capsys.disabled():
        print()
        f = toy.folder/"Unequal_TEST.ts"
        (in_tmp/"dir").mkdir()
        attempt(command,"predict","classification",unequal_run,f,"-o","dir")
        attempt(command,"predict","classification",unequal_run,f,"-o","x"*300)
        attempt(command,"predict","classification",unequal_run,f,"-o","dir/../p.csv","--explain")
        lines=[":".join([l.split(":")[0],"?",l.split(":")[-1]]) for l in new_toy.lines(4,0)]
        g=new_toy.write_file(new_toy.folder/"new.ts",lines,equal=False)
        attempt(command,"predict","classification",unequal_run,g,"-o","q.csv")
        g=new_toy.write_file(new_toy.folder/"one.ts",["?,?,?,?,?,?,?,?,?,?:?,?:rest"],equal=False)
        attempt(command,"predict","classification",unequal_run,g,"-o","q.csv")
        # class absent from TEST
        tl=[l for l in toy.lines(30,9,unequal=True) if not l.endswith(":rest")]
        new_toy.write("Toy",toy.lines(36,3,unequal=True),tl,equal=False)
        attempt(train.__wrapped__ if hasattr(train,'__wrapped__') else (lambda *a: train(a[0],a[1],*a[2:],data_dir=new_toy.folder)),"Toy",in_tmp/"absent","--set","data.folds=1","--set","trainer.max_epochs=2")
        r=json.loads((in_tmp/"absent/results.json").read_text())["test"]; print(r)
        import csv
        rows=list(csv.DictReader(open(in_tmp/"absent/predictions.csv")))
        y=[l.rpartition(":")[2] for l in tl]; p=[x["predicted"] for x in rows]
        print("sk", accuracy_score(y,p), balanced_accuracy_score(y,p), f1_score(y,p,average="macro"), set(p))
        # unfinished folds run: eval
        run=in_tmp/"k"
        train("Small",run,"--set","trainer.max_epochs=1","--set","data.folds=2")
        for x in ("results.json","checkpoints/best.ckpt","checkpoints/last.ckpt","metrics.csv"): (run/x).unlink()
        attempt(command,"eval","classification",run)
        # unfinished split run: eval
        run=in_tmp/"u"; shutil.copytree(unequal_run,run); (run/"results.json").unlink(); (run/"predictions.csv").unlink()
        attempt(command,"eval","classification",run)
        attempt(command,"train","classification","--resume",run,"--devices","1")
        # damaged rows.json
        (in_tmp/"k/checkpoints/fold-1/rows.json").write_text("[")
        attempt(command,"train","classification","--resume",in_tmp/"k")
        for o in (["--set","model.heads=3"],["--set","model.token_steps=999"],["--set","data.eval_batch_size=1"],["--seed","4294967295"],["--set","model.k=1"],["--set","model.period_method=official"],["--set", "trainer.precision=bf16-mixed"],["--set","trainer.precision=64-true"],["--set","trainer.precision=bf16-true"],["--set","optimizer.scheduler=plateau"],["--set","data.normalize=none"],["--set","trainer.patience=1"],["--set", "trainer.patience=1","--set","data.folds=2"], ["--set","optimizer.lr=1e20"]):
            attempt(lambda *a: train(*a), "Small", in_tmp/("o"+"".join(o).replace("/","")[-20:]), "--set","data.folds=1","--set","trainer.max_epochs=1",*o)
