from . import plot as plot
from .api import head_importance as head_importance
from .api import joint_rollout as joint_rollout
from .api import score as score
from .api import span_interaction as span_interaction
from .api import value_zeroing as value_zeroing
from .averages import MeanScores as MeanScores
from .averages import mean as mean
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .effects.ablation import attribution_error as attribution_error
from .effects.ablation import attribution_patching as attribution_patching
from .effects.ablation import zero_ablation as zero_ablation
from .effects.agreement import Agreement as Agreement
from .effects.agreement import agreement as agreement
from .effects.measure import Effect as Effect
from .effects.patching import activation_patching as activation_patching
from .effects.patching import value_patching as value_patching
from .errors import TLVZeroError as TLVZeroError
from .inputs.media import frames as frames
from .models.load import load_model as load_model
from .registry import METHODS as METHODS
from .scores import Scores as Scores
from .zeroing.hooked import value_zeroing_hooks as value_zeroing_hooks

__version__: str
