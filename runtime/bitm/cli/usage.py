"""What `bitm --help` and `bitm COMMAND --help` print."""

from __future__ import annotations

HELP_OPTIONS = """\
  --json                print one JSON document
  --help                print this text
  --version             print the version of bitm
"""
HELP_OPTIONS_TO_RUN = f"""\
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: auto)
  --threads N           threads of a run (default: the CPUs that this process may use)
  --activations MODE    auto, int8, int16, float32 or int11 (default: auto, which is int11)
  --kernels OP=VARIANT,...
                        forces kernels, for measurements; see 'bitm kernels'
  --memory              tell the memory that this would take on the CPU, and do nothing
                        else
{HELP_OPTIONS}"""
HELP = {
    "": """\
usage: bitm COMMAND [model.bitm] [options]

Runs 1-bit BERT models.

commands:
  info        what is in a model file, and what runs it
  verify      checks a model file; prints the hashes by which machines are compared
  fill-mask   fills the mask tokens of texts
  classify    labels texts
  embed       turns texts into vectors
  bench       times a model on this machine
  eval        measures what a model gets right on a text (in the Python package alone)
  kernels     lists the kernels: which this machine can run, which are chosen

'bitm COMMAND --help' tells the options of a command. All of them take --json.
Exit status: 0 done, 1 failed, 2 wrong usage.

example:
  bitm fill-mask model.bitm "Paris is the [MASK] of France."
""",
    "info": f"""\
usage: bitm info model.bitm [options]

Tells what is in a model file, and what runs it here: arithmetic, threads, memory and
kernels.

options:
{HELP_OPTIONS_TO_RUN}
example:
  bitm info model.bitm
""",
    "verify": f"""\
usage: bitm verify model.bitm [options]

Reads the whole file and checks it: checksums, padding, finite values. Then runs a fixed
input in every arithmetic of activations (with --activations: in that one) and prints
the CRC-32 of each result. Two machines that print the same compute the same.

options:
{HELP_OPTIONS_TO_RUN}
example:
  bitm verify model.bitm
""",
    "fill-mask": f"""\
usage: bitm fill-mask [model.bitm] [text ...] [options]

Fills the mask tokens of texts: prints score, token and the filled text of the best
predictions. Without a text it reads texts from standard input, one a line.

The first word is a model if it ends in .bitm or is the path of something that exists. If
it is not, all words are texts, for the demo model of the Python package; the program in C
has no demo model.

options:
  --top-k N             predictions of each mask (default: 5)
  --targets WORD,...    words to choose from (default: the whole vocabulary)
{HELP_OPTIONS_TO_RUN}
example:
  bitm fill-mask model.bitm "Paris is the [MASK] of France." --top-k 3
  bitm fill-mask "The capital of France is [MASK]."
""",
    "classify": f"""\
usage: bitm classify model.bitm [text ...] [options]

Labels texts: prints score and name of the best labels. Without a text it reads texts
from standard input, one a line.

options:
  --top-k N             labels of each text (default: 5)
{HELP_OPTIONS_TO_RUN}
example:
  bitm classify model.bitm "What a wonderful film." --top-k 2
""",
    "embed": f"""\
usage: bitm embed model.bitm [text ...] [options]

Turns texts into vectors of length 1, one a line. Without a text it reads texts from
standard input, one a line.

options:
  --pooling WHICH       mean of the last hidden states over all tokens, their max, or
                        cls: that of the first token (default: mean)
{HELP_OPTIONS_TO_RUN}
example:
  bitm embed model.bitm "Paris is the capital of France."
""",
    "bench": f"""\
usage: bitm bench model.bitm [options]

Times runs of a fixed input on this machine: the encoder alone, and with the head.

options:
  --batch N             sequences of a run (default: 1)
  --length N            tokens of a sequence (default: 64, or what the model takes)
  --repeat N            timed runs (default: 20)
  --warmup N            runs before them (default: 3)
  --positions WHICH     masked-LM logits at one position of each sequence, at all of
                        them, or none: the encoder alone (default: one)
{HELP_OPTIONS_TO_RUN}
example:
  bitm bench model.bitm --length 128 --threads 1
""",
    "eval": f"""\
usage: bitm eval model.bitm --data FILE [options]

Measures a model on a file of data. A masked LM: cross-entropy, perplexity, accuracy and
MRR of masked tokens, and what it says instead. Models with other heads: accuracy of labels
(a table with tabs, such as SST-2), entity F1 (CoNLL's columns), exact match and F1 of
answers (SQuAD v1.1). With time, memory and operations, and 95 % confidence intervals.

options:
  --data FILE           what to evaluate on
  --format FORMAT       of text: lines (a sentence a line), ptb (Penn Treebank), wikitext,
                        or auto (default: auto: what it looks like)
  --protocol WHICH      bert: 15 % of the tokens, of these 80 % become [MASK], 10 % a random
                        token, 10 % stay; original: so, unknown tokens included; mask: all of
                        them become [MASK]; pseudo: every token in turn, one at a time
                        (default: bert)
  --length N            tokens of a sequence at most (default: 64 for a masked LM, 384 for
                        question answering, else what the model takes)
  --batch N             sequences that run together; changes no result (default: 128)
  --seed N              of the masks (default: 0)
  --repeat N            masks every sentence N times, to narrow the interval (default: 1)
  --limit N             so many sentences, spread evenly over the file (default: all)
  --compare FILE ...    more models, in one table with the first
  --report FILE         writes a page of HTML with plots; needs matplotlib: bitm[plot]
  --plots FOLDER        writes the plots as PNG; needs matplotlib: bitm[plot]
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: auto)
  --threads N           threads of a run (default: the CPUs that this process may use)
  --activations MODE,...
                        auto, int8, int16, float32, int11, or several (default: auto: int11)
  --kernels OP=VARIANT,...
                        forces kernels, for measurements; see 'bitm kernels'
{HELP_OPTIONS}
example:
  bitm eval model.bitm --data ptb.valid.txt --seed 1 --report report.html
""",
    "kernels": f"""\
usage: bitm kernels [model.bitm] [options]

Lists the kernels, best first within an operation: whether this machine can run them,
whether they are chosen for their operation, and with which arithmetic of activations
the model runs them. With --device cuda it tells what a GPU multiplies with instead, or
why none can be used.

options:
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: cpu)
  --kernels OP=VARIANT,...
                        forces kernels of the model
{HELP_OPTIONS}
example:
  bitm kernels model.bitm --kernels gemm_w1a8=scalar
""",
}
