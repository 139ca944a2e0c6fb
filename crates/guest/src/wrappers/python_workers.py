"""What multiprocessing is taught: to hand over functions and classes that a program defined, by value where a name would not do.

A program's `__main__` lies in no file, so a worker that is not a copy of the program's process could not look a name up in it. The
worker's `__main__` is made from this file, so that it hands results back the same way. Pickling by value is cloudpickle's; it is
imported when the first such object is met, because that takes a tenth of a second.
"""

import os
import sys

__module_file__ = __file__


class Teacher:
    def __init__(self):
        self.is_copy = False
        os.register_at_fork(after_in_child=self.become_copy)

    def become_copy(self):
        self.is_copy = True

    def reduce(self, thing):
        """How to pickle a function or class of `__main__`."""
        if self.is_copy and self.find(thing) is thing:
            return NotImplemented  # the process that it is a copy of has the same under the same name
        import cloudpickle

        return cloudpickle.loads, (cloudpickle.dumps(thing),)

    def find(self, thing):
        found = sys.modules.get("__main__")
        for name in thing.__qualname__.split("."):
            found = getattr(found, name, None)
        return found

    def teach_reduction(self, module):
        function = type(self.teach_reduction.__func__)

        def reducer_override(pickler, thing):
            is_definition = isinstance(thing, (function, type))
            if is_definition and getattr(thing, "__module__", None) in ("__main__", "__mp_main__"):
                return self.reduce(thing)
            return NotImplemented

        module.ForkingPickler.reducer_override = reducer_override

    def teach_spawn(self, module):
        prepare = module.get_preparation_data

        def get_preparation_data(name):
            return {**prepare(name), "init_main_from_path": __module_file__}

        module.get_preparation_data = get_preparation_data


def teach(module):
    if module.__name__ == "multiprocessing.reduction":
        Teacher().teach_reduction(module)
    else:
        Teacher().teach_spawn(module)


if __name__ == "__mp_main__":
    from multiprocessing import reduction, spawn

    teach(reduction)
    teach(spawn)
    del reduction, spawn
