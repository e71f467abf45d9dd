# qkjax on a CPU:   docker build -t qkjax . && docker run --rm -v "$PWD:/work" qkjax analyze dinov2-vits14-focus
# qkjax on a GPU:   docker build -t qkjax-gpu --build-arg JAX="jax[cuda13]" .
# Not built in the tests: they run without a Docker engine.
FROM python:3.12-slim
ARG JAX=jax
WORKDIR /opt/qkjax
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY qkjax qkjax
RUN pip install --no-cache-dir "${JAX}" ".[onnx,hf,photographs]"
WORKDIR /work
ENTRYPOINT ["qkjax"]
