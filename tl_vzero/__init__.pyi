from tl_vzero import plot as plot
from tl_vzero.api import head_importance as head_importance
from tl_vzero.api import score as score
from tl_vzero.api import span_interaction as span_interaction
from tl_vzero.api import value_zeroing as value_zeroing
from tl_vzero.comparison import Comparison as Comparison
from tl_vzero.comparison import compare as compare
from tl_vzero.effects.ablation import attribution_error as attribution_error
from tl_vzero.effects.ablation import attribution_patching as attribution_patching
from tl_vzero.effects.ablation import zero_ablation as zero_ablation
from tl_vzero.effects.agreement import Agreement as Agreement
from tl_vzero.effects.agreement import agreement as agreement
from tl_vzero.effects.measure import Effect as Effect
from tl_vzero.effects.patching import value_patching as value_patching
from tl_vzero.errors import TLVZeroError as TLVZeroError
from tl_vzero.inputs.media import frames as frames
from tl_vzero.models.load import load_model as load_model
from tl_vzero.registry import METHODS as METHODS
from tl_vzero.scores import Scores as Scores
from tl_vzero.scores import joint_rollout as joint_rollout
from tl_vzero.zeroing.hooked import value_zeroing_hooks as value_zeroing_hooks

__version__: str
