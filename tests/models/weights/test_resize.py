import torch

from diveparse.models.weights.resize import resize_space_embed, resize_time_embed


def test_resizing_keeps_the_class_token_and_the_order_of_places() -> None:
    rows = torch.arange(3.0).repeat_interleave(3)  # (9,) each patch's row, row after row
    embed = torch.cat([torch.tensor([7.0]), rows])[None, :, None]
    larger = resize_space_embed(embed, 36)[0, :, 0]
    assert larger[0] == 7
    grid = larger[1:].reshape(6, 6)
    torch.testing.assert_close(grid, grid[:, :1].expand(6, 6))  # columns alike
    assert (grid[1:, 0] > grid[:-1, 0]).all()  # rows ascending
    times = resize_time_embed(torch.arange(4.0)[None, :, None], 7)[0, :, 0]
    assert (times[1:] > times[:-1]).all()
    assert times[0] == 0
    assert times[-1] == 3
