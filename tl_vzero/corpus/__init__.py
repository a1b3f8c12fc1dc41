"""Many sentences: streamed, resumable, in one process or many, as Parquet shards."""

from tl_vzero.corpus.read import Corpus, read_corpus
from tl_vzero.corpus.write import CorpusRun, run_corpus

__all__ = ["Corpus", "CorpusRun", "read_corpus", "run_corpus"]
