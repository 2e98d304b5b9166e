"""Where a teacher helps and where it hurts, from rollouts alone (gradient alignment, arXiv 2605.10889).

At a *node*, a prefix u of a student's response, the student gives token j the probability p_j and a teacher q_j. With
Q_j the probability of success once j is chosen and the student goes on, V = Σ p Q. Then

- the gradient that raises the student's success most, in the logits of the node, is ``g_j = p_j (Q_j − V)``;
- a distillation loss moves the same logits along ``d = −∂D(p, q)/∂logits``, taken by automatic differentiation of the
  divergence that trains;
- the *alignment* of the two is the cosine of g and d, the *teacher advantage* is Σ q Q − Σ p Q.

Q is measured: the token is forced and the student finishes, many times. What that leaves of noise is corrected where
cosines are averaged, since noise alone makes alignment look small, and most so where Q is close to 0 or 1.

What it does not say: how far an update of shared parameters follows the local gradients of the nodes.
"""
