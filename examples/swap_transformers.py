"""A model of transformers on our layers and optimizer, beside the same model on torch's: each loss has the same bits.

Run it: python examples/swap_transformers.py

Nothing is fetched: the weights are random, the sentences are numbers.
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import reimpl.nn.functional
import reimpl.optim

WORDS, LENGTH, STEPS = 30, 16, 20


def make_model():
    """Return a small Llama with random weights, always the same."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, attention_dropout=0.1, **sizes))


def make_batches():
    """Yield sentences that count upwards from anywhere."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield (torch.randint(WORDS, (16, 1), generator=generator) + torch.arange(LENGTH)) % WORDS


def train(model, optimizer):
    """Return the loss of each step."""
    torch.manual_seed(2)  # for dropout
    losses = []
    for words in make_batches():
        optimizer.zero_grad()
        loss = model(input_ids=words, labels=words).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    """Train it three times."""
    theirs = make_model()
    ours, principles = copy.deepcopy(theirs), copy.deepcopy(theirs)
    print("torch's layers changed to ours:", len(reimpl.swap(ours).swapped))
    reimpl.swap(principles, functional=reimpl.nn.functional)

    expected = train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01))
    found = train(ours, reimpl.optim.AdamW(ours.parameters(), lr=0.01))
    for step, (loss, reference) in enumerate(zip(found, expected, strict=True), start=1):
        print(
            f"step {step:2}: {loss:.6f}, {'the same bits' if loss == reference else f'but torch has {reference:.6f}'}"
        )

    derived = train(principles, reimpl.optim.AdamW(principles.parameters(), lr=0.01))
    farthest = max(abs(loss - reference) for loss, reference in zip(derived, expected, strict=True))
    print(f"from first principles: {derived[-1]:.6f}, never farther away than {farthest:.0e}")
    return expected, found, derived


if __name__ == "__main__":
    main()
