"""The main job: one sentence, Value Zeroing beside every other method and beside the effects on the prediction."""

from tl_vzero.report.long_text import LongReport
from tl_vzero.report.make import make_report
from tl_vzero.report.report import Report
from tl_vzero.report.translation import Translation, generate

__all__ = ["LongReport", "Report", "Translation", "generate", "make_report"]
