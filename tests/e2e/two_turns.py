"""An agent loop of two turns: the student answers, a tool speaks, the student answers again."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

TOOL = "<|user|>again<|im_end|><|assistant|>"


class TwoTurns(AgentLoopBase):
    """Response tokens of the tool have mask 0."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        prompt_ids = list(await self.ct_build_initial_tokens(list(kwargs["raw_prompt"])))
        tool_ids = self.tokenizer.encode(TOOL, add_special_tokens=False)
        room = (self.rollout_config.response_length - len(tool_ids)) // 2
        response_ids: list[int] = []
        mask: list[int] = []
        for turn in (0, 1):
            answer = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=prompt_ids + response_ids,
                sampling_params=sampling_params | {"max_tokens": room},
            )
            response_ids += answer.token_ids
            mask += [1] * len(answer.token_ids)
            if turn == 0:
                response_ids += tool_ids
                mask += [0] * len(tool_ids)
        extra = answer.extra_fields | {"turn_scores": [], "tool_rewards": []}
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=mask,
            num_turns=4,
            metrics=AgentLoopMetrics(),
            extra_fields=extra,
        )
