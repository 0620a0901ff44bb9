"""Asks a server for a completion with an SLO: python examples/client.py [URL]."""

import sys

from openai import OpenAI

url = sys.argv[1] if sys.argv[1:] else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="none")
model = client.models.list().data[0].id
# The first token within half a second, then one every 50 ms.
slo = {"slo": {"ttft_ms": 500, "tbt_ms": 50}}
answer = client.completions.create(
    model=model, prompt="Good morning", max_tokens=8, extra_body=slo
)
print(answer.choices[0].text)
