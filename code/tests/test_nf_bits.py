"""Where bits are spent: regions part the image, and pixels share the density."""

import torch

import a3_nf_template as nf
from a3.nf_bits import pixel_terms, regions


def test_regions_part_the_image():
    x = torch.zeros(1, 28, 28)
    x[0, 10:15, 10:15] = 200
    found = {name: chosen.view(28, 28) for name, chosen in regions(x.flatten(1)).items()}
    assert found["inside"].nonzero().tolist() == [[i, j] for i in (11, 12, 13)
                                                  for j in (11, 12, 13)]
    assert found["edge"].sum() == 7 * 7 - 3 * 3
    assert torch.equal(sum(part.int() for part in found.values()), torch.ones(28, 28).int())


def test_the_terms_of_all_pixels_are_the_flows_density():
    torch.manual_seed(0)
    model = nf.Model(n_flows=1, n_hidden=8).eval()
    for part in model.parameters():
        part.data += 0.1 * torch.randn_like(part)
    x = torch.randint(0, 256, (3, 784)).float()
    terms, whole = (work(torch.Generator().manual_seed(1)) for work in (
        lambda noise: pixel_terms(model, nf.log_prior, x, noise),
        lambda noise: model(x, noise)))
    assert torch.allclose(terms.sum(dim=1), whole, rtol=1e-5)
