"""lm-evaluation-harness's own command line, with `--model famjax` registered; all its flags work:

python -m famjax.evals.harness --model famjax --model_args path=runs/fam --batch_size 16 --tasks hellaswag --limit 100
"""

from lm_eval.__main__ import cli_evaluate

from famjax.evals.harness import model  # noqa: F401  (registers famjax)
from famjax.process.compilation_cache import enable
from famjax.process.libtpu import hide_without_tpu

if __name__ == "__main__":
    hide_without_tpu()
    enable()
    cli_evaluate()
