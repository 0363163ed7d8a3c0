"""One transformer block, pre-norm, with one addition: it may receive a PE.

    x = x + MSA(LN(x) + p)       p: the delivered PE, or nothing
    x = x + MLP(LN(x))

The delivered PE meets the *normalized* tokens and goes into the attention only; it is never added to the
residual stream x. As the query-key-value map is linear, W(LN(x) + p) = W LN(x) + W p: a delivered PE is a
bias on queries, keys and values that differs from position to position.

Sources: ViT (Dosovitskiy et al. 2021), Eq. 2 and 3; the place where p enters: LaPE (Yu et al. 2023) and paper, Fig. 3.
Shapes: B images, N tokens, D width, H heads.
"""
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head self-attention (MSA), (B, N, D) -> (B, N, D). ValueError if H does not divide D."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, attention_dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide width {width}: choose a width that is a multiple of heads")
        self.heads, self.attention_dropout = heads, attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        heads = (B, N, self.heads, D // self.heads)
        q, k, v = (y.view(heads).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=2))      # 3 x (B, H, N, D / H)
        x = scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        x = x.transpose(1, 2).reshape(B, N, D)                              # (B, H, N, D / H) -> (B, N, D)
        return self.proj(x)


class Mlp(nn.Module):
    """Two linear maps with a GELU between them, the same for every token, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))                              # (B, N, D) -> (B, N, hidden) -> (B, N, D)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, x (B, N, D) of an image becomes 0 with probability p.

    What is kept is divided by 1 - p, so that the mean stays the same. ValueError unless 0 <= p < 1.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"stochastic depth drops with probability {p}, expected at least 0 and below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * x.new_empty(len(x), 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)        # (B, N, D) * (B, 1, 1)


class Block(nn.Module):
    """x (B, N, D), pe (1, N, D) or None -> (B, N, D). It never learns which schedule the PE comes from.

    stochastic_depth: probability of dropping each of the two branches, image by image, in training.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = True,
                 attention_dropout: float = 0.0, stochastic_depth: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, attention_dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(stochastic_depth)

    def forward(self, x: Tensor, pe: Tensor | None = None) -> Tensor:
        y = self.norm1(x)                                                   # (B, N, D)
        if pe is not None:
            y = y + pe                                                      # (B, N, D) + (1, N, D)
        x = x + self.drop_path(self.attn(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))
