"""YAML that people write, and one error for all that may be wrong with it."""

import yaml


def load_yaml(text: str) -> object:
    """The values in a YAML text; nothing but plain ones is ever made.

    Raises:
        ValueError: in one line, if it is no YAML, is nested too deeply, has an impossible number or date, or a key
            twice.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that is there twice: PyYAML would drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
