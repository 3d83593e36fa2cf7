from precfm.pipeline.artifact import Artifact as Artifact
from precfm.pipeline.build import build as build
from precfm.pipeline.experiments import load_experiment as load_experiment
from precfm.pipeline.job import Job as Job
from precfm.pipeline.node import Node as Node
from precfm.pipeline.plan import Plan as Plan
from precfm.pipeline.plan import load_plan as load_plan
from precfm.pipeline.publication import publish as publish
