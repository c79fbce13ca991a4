import torch

from nag.support.roots import bisect


def test_square_roots_by_bisection():
    squares = torch.tensor([[0.25, 2.0], [3.0, 9.0]], dtype=torch.float64)
    low, high = bisect(lambda x: x**2 < squares, torch.zeros_like(squares), 4 + 0 * squares)
    torch.testing.assert_close(low, squares.sqrt(), rtol=0, atol=1e-14)
    torch.testing.assert_close(high, squares.sqrt(), rtol=0, atol=1e-14)


def test_a_falling_function_has_its_ends_swapped():
    one = torch.ones(1, dtype=torch.float64)
    low, high = bisect(lambda x: 1 / x < 4, 2 * one, 0 * one)
    torch.testing.assert_close((low + high) / 2, one / 4)


def test_a_root_beyond_an_end_gives_that_end_and_few_halvings_a_wide_bracket():
    ends = torch.zeros(2), torch.ones(2)
    low, high = bisect(lambda x: x < torch.tensor([5.0, -5.0]), *ends)
    assert high[0] == 1 and low[1] == 0
    low, high = bisect(lambda x: x < 0.3, *ends, halvings=2)
    assert low.tolist() == [0.25, 0.25] and high.tolist() == [0.5, 0.5]
