"""An optimizer from a rule: Lion, trained on a small problem in every engine, saved and resumed.

Run it: python examples/lion.py
Judge it: reimpl verify examples.lion.Lion
"""

import torch

from reimpl.optim import RuleOptimizer


class Lion(RuleOptimizer):
    """Lion, by Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2."""

    @staticmethod
    def rule(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        """Move by the sign of a momentum that weighs the newest gradient more than its memory does."""
        beta1, beta2 = betas
        param.mul_(1 - lr * weight_decay)
        param.sub_(exp_avg.lerp(grad, 1 - beta1).sign(), alpha=lr)
        exp_avg.lerp_(grad, 1 - beta2)


def train(checkpoint=None, steps=200, **engine):
    """Fit a line to noisy points, on from a checkpoint if there is one; return the loss and a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(64, generator=generator)
    weight, bias = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = Lion([{"params": [weight], "weight_decay": 0.01}, {"params": [bias]}], lr=0.02, **engine)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        weight.data, bias.data = (value.clone() for value in checkpoint["parameters"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(inputs @ weight + bias, targets)
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item(), {"optimizer": optimizer.state_dict(), "parameters": [weight.detach(), bias.detach()]}


if __name__ == "__main__":
    for engine in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        print(f"{engine}: loss {train(**engine)[0]:.6f}")
    _, checkpoint = train()
    print(f"resumed: loss {train(checkpoint, steps=50)[0]:.6f}")
