from precfm.diagnosis.conditioning import Conditioning as Conditioning
from precfm.diagnosis.conditioning import kappa_floor as kappa_floor
from precfm.diagnosis.diagnosis import Diagnosis as Diagnosis
from precfm.diagnosis.diagnosis import diagnose as diagnose
from precfm.diagnosis.evidence import quoted as quoted
from precfm.diagnosis.maps import TRIED as TRIED
from precfm.diagnosis.maps import MapReport as MapReport
from precfm.diagnosis.recommendation import Recommendation as Recommendation
