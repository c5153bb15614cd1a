"""Specialised multi-task optimisers: how the tasks' losses or gradients become one direction."""

from mtrl.smto.aligned import AlignedMTL
from mtrl.smto.autoscale import AutoScale
from mtrl.smto.base import SMTO, GramianSMTO, LearnedSMTO, RandomSMTO
from mtrl.smto.cagrad import CAGrad
from mtrl.smto.check import check
from mtrl.smto.conflict_free import ConFIG
from mtrl.smto.discrepancy import LDCMTL
from mtrl.smto.graddrop import GradDrop, SignAgnosticGradDrop
from mtrl.smto.gradnorm import GradNorm
from mtrl.smto.grouping import GO4Align
from mtrl.smto.imtl import IMTL, IMTLG
from mtrl.smto.loss_balancing import (
    FAMO,
    IMTLL,
    BoundaryIntersection,
    DynamicWeightAverage,
    GeometricLoss,
    ScaleInvariant,
    SmoothTchebycheff,
    UncertaintyWeighting,
)
from mtrl.smto.min_norm import CDTT, EDM, MGDA
from mtrl.smto.nash import FairGrad, NashMTL
from mtrl.smto.priority import PCD
from mtrl.smto.projection import GradVac, PCGrad
from mtrl.smto.random_weighting import RandomGradDrop, RLWDirichlet, RLWNormal
from mtrl.smto.registry import Method, available, create, describe, register
from mtrl.smto.remembered import DBMTL, ExcessMTL, MoDo
from mtrl.smto.sdmgrad import SDMGrad
from mtrl.smto.upgrad import DualProj, UPGrad
from mtrl.smto.weighting import Fixed, Unitary

__all__ = [
    "CDTT",
    "DBMTL",
    "EDM",
    "FAMO",
    "IMTL",
    "IMTLG",
    "IMTLL",
    "LDCMTL",
    "MGDA",
    "PCD",
    "SMTO",
    "AlignedMTL",
    "AutoScale",
    "BoundaryIntersection",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "DynamicWeightAverage",
    "ExcessMTL",
    "FairGrad",
    "Fixed",
    "GO4Align",
    "GeometricLoss",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianSMTO",
    "LearnedSMTO",
    "Method",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "RLWDirichlet",
    "RLWNormal",
    "RandomGradDrop",
    "RandomSMTO",
    "SDMGrad",
    "ScaleInvariant",
    "SignAgnosticGradDrop",
    "SmoothTchebycheff",
    "UPGrad",
    "UncertaintyWeighting",
    "Unitary",
    "available",
    "check",
    "create",
    "describe",
    "register",
]
