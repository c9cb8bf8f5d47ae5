"""Flows of codes: inverses and log-determinants, and the identity at the start."""

import pytest
import torch
from torch import nn

from a3.vae_flows import SCALE_LIMIT, CodeFlow


def randomised(flow: CodeFlow) -> CodeFlow:
    torch.manual_seed(0)
    for part in flow.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return flow.double()


@pytest.mark.parametrize(("z_dim", "n_context"), [(2, 0), (5, 0), (5, 3), (20, 7)])
def test_inverse_and_log_determinants(z_dim, n_context):
    flow = randomised(CodeFlow(z_dim, 4, n_context))
    z = torch.randn(4, z_dim, dtype=torch.float64)
    context = torch.randn(4, n_context, dtype=torch.float64) if n_context else None
    out, ldj = flow(z, context)
    back, inverse_ldj = flow.inverse(out, context)
    assert (out - z).abs().min() > 0 and (back - z).abs().max() < 1e-9
    assert (ldj + inverse_ldj).abs().max() < 1e-9
    for i in range(4):
        one = context[i:i + 1] if n_context else None
        jacobian = torch.autograd.functional.jacobian(
            lambda row, one=one: flow(row[None], one)[0][0], z[i])
        assert abs(jacobian.slogdet()[1] - ldj[i]) < 1e-9


def test_a_context_changes_the_map_and_is_shared_by_draws():
    flow = randomised(CodeFlow(4, 4, 3))
    z, context = torch.randn(6, 2, 4).double(), torch.randn(2, 3).double()
    out, ldj = flow(z, context)
    for draw in range(6):
        alone, alone_ldj = flow(z[draw], context)
        assert torch.allclose(out[draw], alone) and torch.allclose(ldj[draw], alone_ldj)
    assert not torch.allclose(out, flow(z, context + 1)[0])


def test_no_coupling_scales_a_code_by_more_than_its_limit():
    flow = randomised(CodeFlow(4, 2))
    for coupling in flow.layers:
        coupling.last.weight.data *= 1e3
    z = torch.randn(50, 4, dtype=torch.float64)
    for sign in (flow(z)[1], -flow.inverse(z)[1]):  # two couplings, each of two dimensions
        assert SCALE_LIMIT < sign.abs().max() <= 4 * SCALE_LIMIT


def test_it_starts_as_the_identity_and_has_none_with_no_layers():
    z = torch.randn(3, 5)
    for flow in (CodeFlow(5, 4), CodeFlow(5, 0)):
        out, ldj = flow(z)
        assert torch.equal(out, z) and torch.equal(ldj, torch.zeros(3))
